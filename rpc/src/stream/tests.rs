use super::*;
use crate::{Metrics, Rpc};
use std::sync::atomic::AtomicU32;
use tokio_stream::StreamExt;
use tonic::Code;

fn runtime(deadline_ms: u64) -> Runtime {
    Runtime::new(Metrics::new(), Duration::from_millis(deadline_ms))
}

fn call() -> Call {
    Call::new(Rpc::GetMetadataDelta).volume("pool.s1")
}

async fn idle(runtime: &Runtime) {
    assert_eq!(runtime.drain(Duration::from_secs(10)).await, 0);
}

fn counted(runtime: &Runtime, code: &str) -> bool {
    runtime.metrics().encode().contains(&format!(r#"{{rpc="GetMetadataDelta",code="{code}"}} 1"#))
}

fn count(trace: &mut Trace, outlet: &Outlet<u32>, to: u32) -> Result<()> {
    trace.step("count");
    (0..to).try_for_each(|n| outlet.send(n))
}

#[tokio::test]
async fn all_messages_and_a_good_end() {
    let runtime = runtime(10_000);
    for length in [0, 1, 100] {
        let stream = runtime.stream(call(), move |trace, outlet| count(trace, outlet, length)).await.unwrap();
        let all: Vec<u32> = stream.map(Result::unwrap).collect().await;
        assert!(all.into_iter().eq(0..length));
    }
    idle(&runtime).await;
    assert!(runtime.metrics().encode().contains(r#"{rpc="GetMetadataDelta",code="OK"} 3"#));
}

#[tokio::test]
async fn an_error_before_the_first_message_is_the_answer() {
    let runtime = runtime(10_000);
    let refused = runtime.stream::<u32>(call(), |_, _| Err(Error::not_found("gone"))).await.err().unwrap();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "gone"));
    idle(&runtime).await;
    assert!(counted(&runtime, "NOT_FOUND"));
}

/// Neither an error nor a panic may look like the end of the list.
#[tokio::test]
async fn what_fails_later_ends_the_stream_with_an_error() {
    let runtime = runtime(10_000);
    let fail = |trace: &mut Trace, outlet: &Outlet<u32>| {
        count(trace, outlet, 5)?;
        Err(Error::new(ErrorKind::Corrupt, "damaged"))
    };
    let items: Vec<_> = runtime.stream(call(), fail).await.unwrap().collect().await;
    assert_eq!(items.len(), 6);
    assert_eq!(items[5].as_ref().unwrap_err().code(), Code::DataLoss);
    let boom = |trace: &mut Trace, outlet: &Outlet<u32>| {
        count(trace, outlet, 1)?;
        panic!("boom")
    };
    let items: Vec<_> = runtime.stream(call(), boom).await.unwrap().collect().await;
    assert_eq!(items[1].as_ref().unwrap_err().code(), Code::Internal);
    idle(&runtime).await;
}

#[tokio::test]
async fn the_work_waits_for_its_client_and_ends_with_it() {
    let runtime = runtime(10_000);
    let sent = Arc::new(AtomicU32::new(0));
    let counter = sent.clone();
    let work = move |_: &mut Trace, outlet: &Outlet<u32>| {
        (0..1000).try_for_each(|n| {
            counter.store(n, Ordering::SeqCst);
            outlet.send(n)
        })
    };
    let mut stream = runtime.stream(call(), work).await.unwrap();
    stream.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(sent.load(Ordering::SeqCst) <= 4, "{sent:?} messages wait for a client that does not take them");
    drop(stream);
    idle(&runtime).await;
    assert!(sent.load(Ordering::SeqCst) <= 5);
    assert!(counted(&runtime, "CANCELLED"));
    // Whoever asks again at once is served: what was left behind does not hang.
    runtime.stream(call(), |trace, outlet| count(trace, outlet, 1)).await.unwrap();
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_given_up() {
    let runtime = runtime(50);
    let mut stream = runtime.stream(call(), |trace, outlet| count(trace, outlet, 1000)).await.unwrap();
    idle(&runtime).await;
    let mut last = None;
    while let Some(item) = stream.next().await {
        last = Some(item);
    }
    assert_eq!(last.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn the_deadline_is_for_each_message() {
    let runtime = runtime(400);
    let slow = |last_ms: u64| {
        move |trace: &mut Trace, outlet: &Outlet<u32>| {
            trace.step("read");
            (0..6).try_for_each(|n| {
                std::thread::sleep(Duration::from_millis(if n == 5 { last_ms } else { 100 }));
                outlet.send(n)
            })
        }
    };
    let all: Vec<_> = runtime.stream(call(), slow(100)).await.unwrap().collect().await;
    assert!(all.len() == 6 && all.iter().all(Result::is_ok), "longer than the deadline in all: {all:?}");
    let cut: Vec<_> = runtime.stream(call(), slow(1600)).await.unwrap().collect().await;
    let last = cut[5].as_ref().unwrap_err();
    assert!(last.code() == Code::DeadlineExceeded && last.message().contains("\"read\""), "{last}");
    idle(&runtime).await;
    assert!(counted(&runtime, "DEADLINE_EXCEEDED"));
    let late = runtime.stream(call(), |_, outlet| {
        std::thread::sleep(Duration::from_millis(1000));
        outlet.send(1)
    });
    assert_eq!(late.await.err().unwrap().code(), Code::DeadlineExceeded);
    idle(&runtime).await;
}
