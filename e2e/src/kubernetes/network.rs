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
/// A second bridge, for what pods tell to others than Kubernetes: it stays when a node's control network is cut.
const CLIENTS_BRIDGE: &str = "lab1";
/// On that bridge, where the clients of pods are.
pub(super) const CLIENTS: &str = "10.78.0.1";
/// The routing table for answers from there.
const CLIENTS_TABLE: &str = "78";

pub(super) fn create() -> Result<()> {
    ip(&["link", "set", "lo", "up"])?;
    // With an address of its own, else it takes one of its links', and changes it when that node goes.
    ip(&["link", "add", BRIDGE, "address", "02:00:00:00:00:01", "type", "bridge"])?;
    ip(&["address", "add", &format!("{HOST}/24"), "dev", BRIDGE])?;
    ip(&["address", "add", &format!("{API_SERVICE}/32"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    ip(&["link", "add", CLIENTS_BRIDGE, "address", "02:00:00:00:00:02", "type", "bridge"])?;
    ip(&["address", "add", &format!("{CLIENTS}/24"), "dev", CLIENTS_BRIDGE])?;
    ip(&["link", "set", CLIENTS_BRIDGE, "up"])?;
    ip(&["rule", "add", "from", CLIENTS, "lookup", CLIENTS_TABLE])?;
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

/// Gives the namespace of the process `init` a link to each bridge.
pub(super) fn connect_node(number: usize, init: u32) -> Result<()> {
    let init = init.to_string();
    let (address, subnet) = (node_address(number), pod_subnet(number));
    let clients_address = format!("10.78.0.{}", 10 + number);
    let inside = |arguments: &[&str]| {
        program("nsenter", &[&["--target", &init, "--net", "--", "ip"], arguments].concat()).map(drop)
    };
    inside(&["link", "set", "lo", "up"])?;
    let links = [(node_link(number), BRIDGE, &address), (clients_link(number), CLIENTS_BRIDGE, &clients_address)];
    for ((link, bridge, address), name) in links.into_iter().zip(["eth0", "eth1"]) {
        // Of its earlier life; the kernel removes it a moment after the node's processes.
        let _ = ip(&["link", "delete", &link]);
        ip(&["link", "add", &link, "type", "veth", "peer", "name", name, "netns", &init])?;
        ip(&["link", "set", &link, "master", bridge, "up"])?;
        inside(&["address", "add", &format!("{address}/24"), "dev", name])?;
        inside(&["link", "set", name, "up"])?;
    }
    inside(&["route", "add", "default", "via", HOST])?;
    ip(&["route", "replace", &subnet, "via", &address])?;
    ip(&["route", "replace", &subnet, "via", &clients_address, "table", CLIENTS_TABLE])
}

/// Cuts a node off from the control plane and from other nodes, or connects it again. Its clients are still there.
pub(super) fn set_control_link(number: usize, is_up: bool) -> Result<()> {
    ip(&["link", "set", &node_link(number), if is_up { "up" } else { "down" }])
}

fn node_link(number: usize) -> String {
    format!("lab-node-{number}")
}

fn clients_link(number: usize) -> String {
    format!("lab-clients-{number}")
}

fn ip(arguments: &[&str]) -> Result<()> {
    program("ip", arguments).map(drop)
}
