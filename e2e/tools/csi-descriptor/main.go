// Prints the descriptor of CSI as its published Go module carries it: an encoded FileDescriptorSet with its imports.
package main

import (
	"log"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

func main() {
	set := &descriptorpb.FileDescriptorSet{}
	add(set, map[string]bool{}, (&csi.ProbeRequest{}).ProtoReflect().Descriptor().ParentFile())
	encoded, err := proto.Marshal(set)
	if err != nil {
		log.Fatalf("encode the descriptor of CSI: %v", err)
	}
	if _, err := os.Stdout.Write(encoded); err != nil {
		log.Fatalf("write the descriptor of CSI: %v", err)
	}
}

// Imports come before the files that use them, as readers of a FileDescriptorSet expect.
func add(set *descriptorpb.FileDescriptorSet, seen map[string]bool, file protoreflect.FileDescriptor) {
	if seen[file.Path()] {
		return
	}
	seen[file.Path()] = true
	imports := file.Imports()
	for i := 0; i < imports.Len(); i++ {
		add(set, seen, imports.Get(i).FileDescriptor)
	}
	set.File = append(set.File, protodesc.ToFileDescriptorProto(file))
}
