// Only marks the root of the module: it is built with -modfile=csi-1.2.mod or csi-1.12.mod.
module csi-client

go 1.25.0
