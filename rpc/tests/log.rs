//! What the log says of a call: one line at its end, and never a secret.
#![allow(clippy::unwrap_used, reason = "a test")]

use csi_proto::csi::CreateVolumeRequest;
use rpc::{Call, Metrics, Rpc, Runtime};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;
use volume::{Error, ErrorKind};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Log {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
    }
}

/// One test, because the log is the process's.
#[tokio::test]
async fn lines() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::DEBUG);
    subscriber.with_writer(log.clone()).init();
    let runtime = Runtime::new(Metrics::new(), Duration::from_secs(30));
    let call = || Call::new(Rpc::ControllerPublishVolume).volume("pool.v1").node("n1");
    let idle = async |runtime: &Runtime| assert_eq!(runtime.drain(Duration::from_secs(10)).await, 0);

    runtime
        .run(call(), |trace| {
            trace.step("find");
            trace.step("attach");
            Ok(())
        })
        .await
        .unwrap();
    idle(&runtime).await;
    let line = log.take();
    assert_eq!(line.lines().count(), 1, "{line}");
    for part in ["INFO", "ControllerPublishVolume", "pool.v1", "n1", "OK", "total_ms=", "find=", "attach="] {
        assert!(line.contains(part), "{part} is not in {line}");
    }

    let cause = || Error::new(ErrorKind::Held, "node n2 holds it").context("publish volume pool.v1 to node n1");
    runtime.run::<()>(call(), move |_| Err(cause())).await.unwrap_err();
    idle(&runtime).await;
    let line = log.take();
    assert_eq!(line.lines().count(), 1, "{line}");
    for part in ["WARN", "FAILED_PRECONDITION", "publish volume pool.v1 to node n1: node n2 holds it"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }

    // Whatever a client sends: one line, and no longer than it has to be.
    let huge = "x\n".repeat(1 << 20);
    let wrong = || Error::invalid(format!("unknown parameter {huge:?}"));
    let _ = runtime.refuse(&Call::new(Rpc::CreateVolume).volume(&huge).node(&huge), &wrong());
    let error = wrong();
    runtime.run::<()>(call().volume(&huge), move |_| Err(error)).await.unwrap_err();
    idle(&runtime).await;
    let lines = log.take();
    assert_eq!(lines.lines().count(), 2);
    assert!(lines.len() < 8192 && lines.contains("INVALID_ARGUMENT"), "{} bytes", lines.len());

    let slow = |trace: &mut rpc::Trace| {
        trace.step("fsync");
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    };
    let hasty = Runtime::new(Metrics::new(), Duration::from_millis(100));
    hasty.run(call(), slow).await.unwrap_err();
    idle(&hasty).await;
    let lines = log.take();
    assert_eq!(lines.lines().count(), 2, "one when the deadline passes, one when the work ends: {lines}");
    let (first, second) = lines.split_once('\n').unwrap();
    assert!(first.contains("DEADLINE_EXCEEDED") && first.contains("fsync"), "{first}");
    assert!(second.contains("deadline passed") && second.contains("OK"), "{second}");

    let secrets = [("password".to_owned(), "hunter2".to_owned())].into();
    runtime.received(Rpc::CreateVolume, &CreateVolumeRequest { name: "db".to_owned(), secrets, ..Default::default() });
    let line = log.take();
    assert!(line.contains("DEBUG") && line.contains("\"db\"") && line.contains("password"), "{line}");
    assert!(!line.contains("hunter2"), "{line}");
}
