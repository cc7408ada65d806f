//! The configuration that the chart writes, given to hawser itself.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// What hawser says against it. It is asked to probe a process that is not there, which takes a sound configuration: with
/// another one it ends with this code, before it looks for anything.
const REFUSED: i32 = 2;

pub(super) fn check(rendered: &str, hawser: &Path, scratch: &Path) -> Result<(), String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(rendered).map_err(|error| error.to_string())?;
    let data = documents.iter().find(|document| !document["data"]["node.toml"].is_null()).map(|found| &found["data"]);
    let data = data.ok_or("no ConfigMap has a node.toml")?;
    for name in ["controller.toml", "node.toml"] {
        let path = scratch.join(name);
        std::fs::write(&path, data[name].as_str().unwrap_or_default())
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        let mut probe = Command::new(hawser);
        // As in the pods, and nothing else.
        probe.env_clear().env("HAWSER_NODE_ID", "node").env("HAWSER_POD_NAME", "pod");
        let output = probe.args(["probe", "live", "--config"]).arg(&path).output();
        let output = output.map_err(|error| format!("cannot start {}: {error}", hawser.display()))?;
        if output.status.code().is_none_or(|code| code == REFUSED) {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
    }
    Ok(())
}
