//! The lab's network: one bridge, in a network namespace that only the lab has.
//!
//! There is no kube-proxy. The one service that pods need is the API server's, and its address is simply on the bridge.

use crate::failure::Result;
use crate::lab::kernel::program;

/// The bridge, where the API server is.
pub(super) const HOST: &str = "10.77.0.1";
/// `kubernetes.default.svc`: the first address of `SERVICES`.
const API_SERVICE: &str = "10.96.0.1";
pub(super) const SERVICES: &str = "10.96.0.0/24";
const BRIDGE: &str = "lab0";

pub(super) fn create() -> Result<()> {
    ip(&["link", "set", "lo", "up"])?;
    // With an address of its own, else it takes one of its links', and changes it when that node goes.
    ip(&["link", "add", BRIDGE, "address", "02:00:00:00:00:01", "type", "bridge"])?;
    ip(&["address", "add", &format!("{HOST}/24"), "dev", BRIDGE])?;
    ip(&["address", "add", &format!("{API_SERVICE}/32"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    Ok(std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?)
}

/// The address of a node's own.
pub(super) fn node_address(number: usize) -> String {
    format!("10.77.0.{}", 10 + number)
}

/// Where the pods of a node are.
pub(super) fn pod_subnet(number: usize) -> String {
    format!("10.244.{number}.0/24")
}

/// Gives the namespace of the process `init` a link to the bridge.
pub(super) fn connect_node(number: usize, init: u32) -> Result<()> {
    let (link, init) = (node_link(number), init.to_string());
    let address = node_address(number);
    // Of its earlier life; the kernel removes it a moment after the node's processes.
    let _ = ip(&["link", "delete", &link]);
    ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &init])?;
    ip(&["link", "set", &link, "master", BRIDGE, "up"])?;
    let inside = |arguments: &[&str]| {
        program("nsenter", &[&["--target", &init, "--net", "--", "ip"], arguments].concat()).map(drop)
    };
    inside(&["link", "set", "lo", "up"])?;
    inside(&["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
    inside(&["link", "set", "eth0", "up"])?;
    inside(&["route", "add", "default", "via", HOST])?;
    ip(&["route", "replace", &pod_subnet(number), "via", &address])
}

fn node_link(number: usize) -> String {
    format!("lab-node-{number}")
}

fn ip(arguments: &[&str]) -> Result<()> {
    program("ip", arguments).map(drop)
}
