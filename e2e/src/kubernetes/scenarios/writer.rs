//! A pod that appends numbers to a file, one after another, and notes each once fsync(2) has returned: what it noted must
//! be in the file whatever happened meanwhile, and none may be missing in between.

use crate::failure::{Context, Failure, Result, ensure};
use crate::kubernetes::space::{Space, Volume, claim, on_node, pod};
use serde_json::json;
use std::time::Duration;

/// `sync FILE` is fsync(2). Times are those since the machine's start, which no clock changes, in hundredths of a second. A
/// number that could not be written is not written again, so it is missing among the noted ones.
const SCRIPT: &str = "trap 'touch /tmp/stopped; exit 0' TERM; n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); \
    echo $n >> /data/log && sync /data/log && read up rest < /proc/uptime && echo $n $up >> /tmp/noted; \
    sleep 0.005; done; touch /tmp/stopped; while :; do sleep 1000 & wait; done";
/// On a machine that is busy with other things a loop of shell may stand still for a while.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Writer<'a> {
    space: &'a Space<'a>,
}

/// Numbers and when they were noted.
struct Noted(Vec<(u64, Duration)>);

impl<'a> Writer<'a> {
    /// In a pod `app` on this node, on a new claim `data`.
    pub(super) fn start(space: &'a Space<'a>, node: &str) -> Result<Self> {
        let mut app = on_node(pod("app", &[Volume::at("data", "/data")]), node);
        app["spec"]["containers"][0]["command"] = json!(["sh", "-c", SCRIPT]);
        space.start(&claim("data", "hawser", "ReadWriteOnce", "1Gi"), &app)?;
        let writer = Self { space };
        writer.ensure_goes_on()?;
        Ok(writer)
    }

    /// Notes something new from now on.
    pub(super) fn ensure_goes_on(&self) -> Result<()> {
        let before = self.count()?;
        self.space.look("the writer goes on", || {
            let now = self.count()?;
            Ok(if now > before + 3 { Ok(()) } else { Err(format!("{before}, then {now}")) })
        })
    }

    fn count(&self) -> Result<u64> {
        self.space.look("the writer's count", || {
            // Nobody can look into a container while its runtime is away.
            let line = self.space.sh("app", "tail -n 1 /tmp/noted").map_err(|failure| failure.to_string());
            Ok(line.and_then(|line| number(&line).map_err(|failure| failure.to_string())))
        })
    }

    /// Ends it and compares, there and once more in a pod on `other`, which has to read it from the disk.
    pub(super) fn verify(self, other: &str) -> Result<()> {
        let space = self.space;
        space.sh("app", "touch /tmp/stop; until [ -e /tmp/stopped ]; do sleep 0.05; done")?;
        let noted = Noted::parse(&space.sh("app", "cat /tmp/noted")?)?;
        let pause = noted.check()?;
        println!("time: {}: {} fsyncs, the longest pause {:.2} s", space.name, noted.0.len(), pause.as_secs_f64());
        ensure(pause < LONGEST_PAUSE, || format!("the writer stood still for {:.1} s", pause.as_secs_f64()))?;
        noted.check_file(&space.sh("app", "cat /data/log")?)?;
        space.delete_pod("app")?;
        space.create_pod(&on_node(pod("reader", &[Volume::at("data", "/data")]), other))?;
        space.wait_running("reader")?;
        noted.check_file(&space.sh("reader", "cat /data/log")?).context(|| format!("read again on {other}"))
    }
}

fn number(line: &str) -> Result<u64> {
    let first = line.split_whitespace().next().unwrap_or_default();
    first.parse().map_err(|_| Failure::from(format!("{line:?} is no line of the writer")))
}

impl Noted {
    fn parse(text: &str) -> Result<Self> {
        let seconds = |line: &str| line.split_whitespace().nth(1).and_then(|time| time.parse::<f64>().ok());
        let lines = text.lines().map(|line| {
            let time = seconds(line).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            Ok((number(line)?, time.ok_or_else(|| format!("{line:?} has no time"))?))
        });
        Ok(Self(lines.collect::<Result<_>>()?))
    }

    /// None is missing; the longest pause between two.
    fn check(&self) -> Result<Duration> {
        let expected = (1..).zip(&self.0);
        for (expected, (number, _)) in expected {
            ensure(expected == *number, || format!("{expected} was not written: {number} was noted in its place"))?;
        }
        let pauses = self.0.windows(2).map(|pair| pair[1].1.saturating_sub(pair[0].1));
        pauses.max().ok_or_else(|| "the writer wrote nothing".into())
    }

    fn check_file(&self, text: &str) -> Result<()> {
        let written = text.lines().map(number).collect::<Result<Vec<_>>>()?;
        let first_wrong = (1..).zip(&written).find(|(expected, number)| expected != *number);
        ensure(first_wrong.is_none(), || {
            format!(
                "the file has {:?} in place of {:?}",
                first_wrong.map(|pair| pair.1),
                first_wrong.map(|pair| pair.0)
            )
        })?;
        ensure(written.len() >= self.0.len(), || {
            format!("{} were acknowledged and {} are there", self.0.len(), written.len())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_is_there() {
        let noted = Noted::parse("1 10.00\n2 10.50\n3 10.51").unwrap();
        assert_eq!(noted.check().unwrap(), Duration::from_millis(500));
        noted.check_file("1\n2\n3").unwrap();
        // Written and not acknowledged yet.
        noted.check_file("1\n2\n3\n4").unwrap();
        assert!(noted.check_file("1\n2").is_err(), "an acknowledged write is lost");
        assert!(noted.check_file("1\n3\n3").is_err(), "another is in its place");
    }

    #[test]
    fn a_write_that_failed_is_noticed() {
        assert!(Noted::parse("1 10.00\n3 10.10").unwrap().check().is_err());
        assert!(Noted::parse("").unwrap().check().is_err());
        assert!(Noted::parse("1").is_err());
    }
}
