// A CSI client of whatever version of the specification it is built with: csi-1.2.mod is what Docker Swarm has,
// csi-1.12.mod what Nomad has. It makes the calls of that orchestrator for one volume, from creation to deletion, and
// prints a line for each. With -unknown every request carries a field and, where one fits, an enum value that no
// version of CSI has, as a client of a later version would send.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Numbers that CSI has not given to anything.
const (
	unknownField = 900
	unknownMode  = 90
)

// Set by the build: the version of the specification.
var version = "?"

type client struct {
	connection *grpc.ClientConn
	identity   csi.IdentityClient
	controller csi.ControllerClient
	node       csi.NodeClient
	directory  string
	volume     string
	publish    map[string]string
	context    map[string]string
}

func main() {
	endpoint := flag.String("endpoint", "", "unix:///socket")
	calls := flag.String("calls", "", "swarm or nomad")
	directory := flag.String("directory", "", "where to stage and publish")
	unknown := flag.Bool("unknown", false, "send fields and enum values that no version has")
	flag.Parse()
	c, err := connect(*endpoint, *directory, *unknown)
	if err == nil {
		switch *calls {
		case "swarm":
			err = c.swarm()
		case "nomad":
			err = c.nomad()
		default:
			err = fmt.Errorf("-calls is %q; it takes swarm or nomad", *calls)
		}
		if err == nil && *unknown {
			err = c.unknownEnums()
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "csi %s: %v\n", version, err)
		os.Exit(1)
	}
	fmt.Printf("done csi %s\n", version)
}

func connect(endpoint, directory string, unknown bool) (*client, error) {
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	if unknown {
		options = append(options, grpc.WithUnaryInterceptor(addUnknown))
	}
	connection, err := grpc.NewClient(endpoint, options...)
	if err != nil {
		return nil, err
	}
	return &client{
		connection: connection,
		identity:   csi.NewIdentityClient(connection),
		controller: csi.NewControllerClient(connection),
		node:       csi.NewNodeClient(connection),
		directory:  directory,
	}, nil
}

// addUnknown puts a field of an unknown number into the request and every message in it.
func addUnknown(ctx context.Context, method string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	var mark func(message protoreflect.Message)
	mark = func(message protoreflect.Message) {
		message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
			switch {
			case field.IsMap() || field.Message() == nil:
			case field.IsList():
				for i := 0; i < value.List().Len(); i++ {
					mark(value.List().Get(i).Message())
				}
			default:
				mark(value.Message())
			}
			return true
		})
		raw := protowire.AppendTag(message.GetUnknown(), unknownField, protowire.BytesType)
		raw = protowire.AppendString(raw, "of a later version")
		message.SetUnknown(protowire.AppendVarint(protowire.AppendTag(raw, unknownField+1, protowire.VarintType), 7))
	}
	switch typed := request.(type) {
	case proto.Message:
		mark(typed.ProtoReflect())
	case protoadapt.MessageV1:
		mark(protoadapt.MessageV2Of(typed).ProtoReflect())
	default:
		return fmt.Errorf("%s: a request of type %T", method, request)
	}
	return invoke(ctx, method, request, reply, cc, options...)
}

// step runs one call within the time that the orchestrators give it.
func step[T any](name string, call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	answer, err := call(ctx)
	if err != nil {
		return answer, fmt.Errorf("%s: %w", name, err)
	}
	fmt.Printf("%s ok\n", name)
	return answer, nil
}

func capability(mode csi.VolumeCapability_AccessMode_Mode, fs string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fs}},
	}
}

const writer = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER

// greet is what both ask first. Every capability must be one that this version of CSI has a name for, as neither
// orchestrator is told more than it knows.
func (c *client) greet() (*csi.NodeGetInfoResponse, error) {
	probe, err := step("Probe", func(ctx context.Context) (*csi.ProbeResponse, error) {
		return c.identity.Probe(ctx, &csi.ProbeRequest{})
	})
	if err != nil {
		return nil, err
	}
	if ready := probe.GetReady(); ready != nil && !ready.GetValue() {
		return nil, fmt.Errorf("Probe: not ready")
	}
	plugin, err := step("GetPluginCapabilities", func(ctx context.Context) (*csi.GetPluginCapabilitiesResponse, error) {
		return c.identity.GetPluginCapabilities(ctx, &csi.GetPluginCapabilitiesRequest{})
	})
	if err != nil {
		return nil, err
	}
	for _, each := range plugin.GetCapabilities() {
		if service := each.GetService(); service != nil {
			if err := known("plugin", csi.PluginCapability_Service_Type_name, int32(service.GetType())); err != nil {
				return nil, err
			}
		} else if each.GetVolumeExpansion() == nil {
			return nil, fmt.Errorf("GetPluginCapabilities: a capability of a sort that CSI %s does not have", version)
		}
	}
	controller, err := step("ControllerGetCapabilities", func(ctx context.Context) (*csi.ControllerGetCapabilitiesResponse, error) {
		return c.controller.ControllerGetCapabilities(ctx, &csi.ControllerGetCapabilitiesRequest{})
	})
	if err != nil {
		return nil, err
	}
	for _, each := range controller.GetCapabilities() {
		if err := known("controller", csi.ControllerServiceCapability_RPC_Type_name, int32(each.GetRpc().GetType())); err != nil {
			return nil, err
		}
	}
	node, err := step("NodeGetCapabilities", func(ctx context.Context) (*csi.NodeGetCapabilitiesResponse, error) {
		return c.node.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
	})
	if err != nil {
		return nil, err
	}
	for _, each := range node.GetCapabilities() {
		if err := known("node", csi.NodeServiceCapability_RPC_Type_name, int32(each.GetRpc().GetType())); err != nil {
			return nil, err
		}
	}
	return step("NodeGetInfo", func(ctx context.Context) (*csi.NodeGetInfoResponse, error) {
		return c.node.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	})
}

func known(what string, names map[int32]string, number int32) error {
	if name, found := names[number]; found && number != 0 {
		fmt.Printf("%s capability %s\n", what, name)
		return nil
	}
	return fmt.Errorf("the %s capability %d is none of CSI %s", what, number, version)
}

// swarm publishes without staging, with an empty mount capability, and never reads publish_context.
func (c *client) swarm() error {
	info, err := c.greet()
	if err != nil {
		return err
	}
	empty := capability(writer, "")
	if err := c.create(&csi.CreateVolumeRequest{
		Name:                      "of an older client",
		CapacityRange:             &csi.CapacityRange{},
		VolumeCapabilities:        []*csi.VolumeCapability{empty},
		AccessibilityRequirements: &csi.TopologyRequirement{},
	}); err != nil {
		return err
	}
	return c.use(info.GetNodeId(), empty, false)
}

// nomad stages, asks for capacity that may be nil, and validates before it claims.
func (c *client) nomad() error {
	if _, err := step("GetPluginInfo", func(ctx context.Context) (*csi.GetPluginInfoResponse, error) {
		return c.identity.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	}); err != nil {
		return err
	}
	info, err := c.greet()
	if err != nil {
		return err
	}
	ext4 := capability(writer, "ext4")
	topology := &csi.TopologyRequirement{}
	if place := info.GetAccessibleTopology(); place != nil {
		topology.Requisite = []*csi.Topology{place}
	}
	if err := c.create(&csi.CreateVolumeRequest{
		Name:                      "of an older client",
		VolumeCapabilities:        []*csi.VolumeCapability{ext4},
		AccessibilityRequirements: topology,
	}); err != nil {
		return err
	}
	valid, err := step("ValidateVolumeCapabilities", func(ctx context.Context) (*csi.ValidateVolumeCapabilitiesResponse, error) {
		return c.controller.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: c.volume, VolumeContext: c.context, VolumeCapabilities: []*csi.VolumeCapability{ext4},
		})
	})
	if err != nil {
		return err
	}
	if confirmed := valid.GetConfirmed().GetVolumeCapabilities(); len(confirmed) != 1 || confirmed[0].GetMount().GetFsType() != "ext4" {
		return fmt.Errorf("ValidateVolumeCapabilities: confirmed %v (%s)", confirmed, valid.GetMessage())
	}
	if _, err := step("ListVolumes", func(ctx context.Context) (*csi.ListVolumesResponse, error) {
		return c.controller.ListVolumes(ctx, &csi.ListVolumesRequest{})
	}); err != nil {
		return err
	}
	snapshot, err := step("CreateSnapshot", func(ctx context.Context) (*csi.CreateSnapshotResponse, error) {
		return c.controller.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: c.volume, Name: "of an older client"})
	})
	if err != nil {
		return err
	}
	if _, err := step("DeleteSnapshot", func(ctx context.Context) (*csi.DeleteSnapshotResponse, error) {
		return c.controller.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snapshot.GetSnapshot().GetSnapshotId()})
	}); err != nil {
		return err
	}
	return c.use(info.GetNodeId(), ext4, true)
}

func (c *client) create(request *csi.CreateVolumeRequest) error {
	created, err := step("CreateVolume", func(ctx context.Context) (*csi.CreateVolumeResponse, error) {
		return c.controller.CreateVolume(ctx, request)
	})
	if err != nil {
		return err
	}
	c.volume, c.context = created.GetVolume().GetVolumeId(), created.GetVolume().GetVolumeContext()
	return nil
}

// use takes the volume into use, writes to it, and gives it back and up.
func (c *client) use(node string, as *csi.VolumeCapability, stages bool) error {
	staging, target := filepath.Join(c.directory, "staging"), filepath.Join(c.directory, "target")
	published, err := step("ControllerPublishVolume", func(ctx context.Context) (*csi.ControllerPublishVolumeResponse, error) {
		return c.controller.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
			VolumeId: c.volume, NodeId: node, VolumeCapability: as, VolumeContext: c.context,
		})
	})
	if err != nil {
		return err
	}
	publish := &csi.NodePublishVolumeRequest{VolumeId: c.volume, TargetPath: target, VolumeCapability: as, VolumeContext: c.context}
	if stages {
		if err := os.MkdirAll(staging, 0o700); err != nil {
			return err
		}
		publish.StagingTargetPath, publish.PublishContext = staging, published.GetPublishContext()
		if _, err := step("NodeStageVolume", func(ctx context.Context) (*csi.NodeStageVolumeResponse, error) {
			return c.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
				VolumeId: c.volume, StagingTargetPath: staging, VolumeCapability: as,
				PublishContext: published.GetPublishContext(), VolumeContext: c.context,
			})
		}); err != nil {
			return err
		}
	}
	if _, err := step("NodePublishVolume", func(ctx context.Context) (*csi.NodePublishVolumeResponse, error) {
		return c.node.NodePublishVolume(ctx, publish)
	}); err != nil {
		return err
	}
	if err := c.write(target); err != nil {
		return err
	}
	if _, err := step("NodeUnpublishVolume", func(ctx context.Context) (*csi.NodeUnpublishVolumeResponse, error) {
		return c.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: c.volume, TargetPath: target})
	}); err != nil {
		return err
	}
	if stages {
		if _, err := step("NodeUnstageVolume", func(ctx context.Context) (*csi.NodeUnstageVolumeResponse, error) {
			return c.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: c.volume, StagingTargetPath: staging})
		}); err != nil {
			return err
		}
	}
	if _, err := step("ControllerUnpublishVolume", func(ctx context.Context) (*csi.ControllerUnpublishVolumeResponse, error) {
		return c.controller.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: c.volume, NodeId: node})
	}); err != nil {
		return err
	}
	_, err = step("DeleteVolume", func(ctx context.Context) (*csi.DeleteVolumeResponse, error) {
		return c.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: c.volume})
	})
	return err
}

// write proves that a file system of its own is at the target.
func (c *client) write(target string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if !strings.Contains(string(mounts), " "+target+" ") {
		return fmt.Errorf("nothing is mounted at %s", target)
	}
	if err := os.WriteFile(filepath.Join(target, "file"), []byte(version), 0o600); err != nil {
		return err
	}
	fmt.Println("written")
	return nil
}

// unknownEnums creates a volume for an access mode of a later version, which reads as the strictest one: the same volume
// is found for one writer on one node.
func (c *client) unknownEnums() error {
	request := &csi.CreateVolumeRequest{
		Name:               "of an unknown mode",
		VolumeCapabilities: []*csi.VolumeCapability{capability(unknownMode, "")},
	}
	if err := c.create(request); err != nil {
		return err
	}
	first := c.volume
	request.VolumeCapabilities[0].AccessMode.Mode = writer
	if err := c.create(request); err != nil {
		return err
	}
	if c.volume != first {
		return fmt.Errorf("CreateVolume with access mode %d made %s, and for one writer %s", unknownMode, first, c.volume)
	}
	_, err := step("DeleteVolume", func(ctx context.Context) (*csi.DeleteVolumeResponse, error) {
		return c.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: first})
	})
	return err
}
