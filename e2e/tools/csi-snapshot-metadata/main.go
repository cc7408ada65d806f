// A backup program's half of Kubernetes' service of changed blocks: it finds the service of a snapshot's driver, gets a
// token for it, asks over TLS, and prints a line of JSON for each answer.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/iterator"
	"k8s.io/client-go/tools/clientcmd"

	// The service itself, so that both have one version.
	_ "github.com/kubernetes-csi/external-snapshot-metadata/pkg/sidecar"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "as kubectl's")
	arguments := iterator.Args{}
	flag.StringVar(&arguments.Namespace, "namespace", "", "of the snapshots")
	flag.StringVar(&arguments.SnapshotName, "snapshot", "", "whose blocks are wanted")
	flag.StringVar(&arguments.PrevSnapshotName, "base", "", "an older snapshot: only the blocks that differ")
	flag.StringVar(&arguments.SAName, "account", "default", "the service account whose token is shown")
	flag.StringVar(&arguments.SANamespace, "account-namespace", "", "its namespace")
	flag.Parse()
	if err := run(*kubeconfig, arguments); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(kubeconfig string, arguments iterator.Args) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	if arguments.Clients, err = iterator.BuildClients(config); err != nil {
		return err
	}
	arguments.Emitter = &iterator.JSONEmitter{Writer: os.Stdout}
	return iterator.GetSnapshotMetadata(context.Background(), arguments)
}
