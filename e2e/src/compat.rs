//! Clients of older and of later versions of CSI: programs built with the published Go library of 1.2 (Docker Swarm's) and
//! 1.12 (Nomad's) make their orchestrator's calls, once as they are and once with fields and enum values that no version
//! has yet.

use crate::failure::{Context, Result, ensure};
use crate::lab::{Lab, Options, PoolFs, kernel};
use crate::missing_privilege;
use crate::report::Report;
use std::path::Path;

/// The orchestrator, whose profile the driver has, and the version of its client.
const CLIENTS: [(&str, &str); 2] = [("swarm", "1.2"), ("nomad", "1.12")];

pub(crate) fn suite(report: &Report, hawser: &Path, clients: &Path) -> Result<()> {
    for (orchestrator, version) in CLIENTS {
        for (kind, more) in [("as-it-is", None), ("of-a-later-version", Some("-unknown"))] {
            let name = format!("compat-{orchestrator}-csi-{version}-{kind}");
            match missing_privilege() {
                Some(reason) => report.skipped(&name, &reason),
                None => report.test(&name, || run(hawser, &clients.join(version), orchestrator, orchestrator, more)),
            }
        }
    }
    // The control: the client of 1.2 notices when it is told of what 1.2 does not have.
    let control = "compat-swarm-csi-1.2-notices-what-it-does-not-know";
    match missing_privilege() {
        Some(reason) => report.skipped(control, &reason),
        None => report.test(control, || {
            let ended = run(hawser, &clients.join("1.2"), "swarm", "kubernetes", None);
            let said = ended.err().map(|failure| failure.to_string()).unwrap_or_default();
            ensure(said.contains("is none of CSI 1.2"), || format!("it did not notice: {said:?}"))
        }),
    }
    Ok(())
}

fn run(hawser: &Path, client: &Path, orchestrator: &str, profile: &'static str, more: Option<&str>) -> Result<()> {
    let lab = Lab::new(hawser, PoolFs::Xfs, 2048)?;
    let options = Options { profile, ..Options::node("n1") };
    let server = lab.start(&options)?;
    let endpoint = format!("unix://{}", lab.socket(&options).display());
    let directory = lab.path("published").to_string_lossy().into_owned();
    let mut arguments = vec!["-endpoint", &endpoint, "-calls", orchestrator, "-directory", &directory];
    arguments.extend(more);
    let said =
        kernel::program(&client.to_string_lossy(), &arguments).context(|| format!("the {orchestrator} client"))?;
    // Its own word that it wrote to a mounted volume, and that it came to its end.
    for line in ["written", "DeleteVolume ok", "done csi"] {
        ensure(said.contains(line), || format!("the client did not say {line:?}: {said}"))?;
    }
    lab.ensure_clean()?;
    server.stop()?;
    lab.ensure_clean()
}
