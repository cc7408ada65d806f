//! Who is let in and who is not, and what both sides say of it; agents that go away and come back.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use agent::{AgentAddress, Authority, CredentialFiles, Credentials, Role, Validity};
use common::*;
use host::FakeHost;
use memory::MemoryBackend;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use volume::{Backend, BackendName, Backends, ErrorKind, LockTable, PageRequest};

fn memory(name: &str) -> Arc<dyn Backend> {
    let name = BackendName::parse(name).unwrap();
    Arc::new(MemoryBackend::new(name, Arc::new(FakeHost::default()), 4 << 30, None))
}

async fn serve(dir: &Path, id: &str, backends: Vec<Arc<dyn Backend>>) -> Served {
    Served::start(id, any_port(), credentials(dir, id, &[Role::Node(node(id))]), backends).await
}

/// What the controller says of an agent that it cannot reach.
async fn refusal(own: Arc<Credentials>, id: &str, address: std::net::SocketAddr) -> String {
    let agents = agents(own, &[(id, address)]);
    let state = until(&agents, id, |state| state.is_connected || !state.problem.contains("being connected")).await;
    assert!(!state.is_connected, "{state:?}");
    assert!(agents.all().is_empty());
    assert_eq!(agents.unheard(), [format!("node {id}")]);
    state.problem
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }

    async fn expect(&self, words: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            if text.contains(words) {
                return;
            }
            assert!(Instant::now() < deadline, "{words:?} is not in\n{text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Each wrong certificate beside the right one, which the same agent takes.
#[tokio::test]
async fn who_is_refused_and_why() {
    let log = Log::default();
    let _logging = log.start();
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let served = serve(dir.path(), "n1", vec![memory("one")]).await;
    let right = || credentials(dir.path(), "c", &[Role::Controller]);
    let reached = agents(right(), &[("n1", served.address)]);
    until(&reached, "n1", |state| state.is_connected && state.is_ready).await;

    let doubts = || tokio::time::timeout(Duration::from_secs(10), served.doubted.notified());
    let quiet = tokio::time::timeout(Duration::from_millis(50), served.doubted.notified()).await;
    assert!(quiet.is_err(), "a controller of the same authority raised a doubt");

    // Of another authority: the agent believes this one, and its own is believed by it, but not the other way round.
    let foreign = Authority::ensure(other.path()).unwrap();
    let foreign = foreign.issue(other.path(), "c", &[Role::Controller], Validity::days(1)).unwrap();
    let ours =
        Authority::ensure(dir.path()).unwrap().issue(dir.path(), "x", &[Role::Controller], Validity::days(1)).unwrap();
    let half = CredentialFiles { ca: ours.ca.clone(), ..foreign.clone() };
    let text = refusal(Credentials::load(half, &[]).unwrap(), "n1", served.address).await;
    assert!(text.contains("refuses the controller's certificate") && text.contains("not signed by"), "{text}");
    log.expect("its certificate is not signed by an authority in the agent's ca").await;
    doubts().await.unwrap();
    let text =
        refusal(Credentials::load(CredentialFiles { ca: foreign.ca, ..ours }, &[]).unwrap(), "n1", served.address)
            .await;
    assert!(text.contains("not signed by an authority in the controller's ca"), "{text}");
    log.expect("it refuses the agent's certificate").await;
    doubts().await.unwrap();

    // A node is no controller, and a supervisor may not use backends.
    for (role, word) in [(Role::Node(node("n2")), "node n2"), (Role::Supervisor, "a supervisor")] {
        // With the purpose of a client, so that only its role is wrong.
        let roles = [role, Role::Supervisor];
        let text = refusal(credentials(dir.path(), "r", &roles), "n1", served.address).await;
        assert!(
            text.contains("the agent of node n1 refuses") && text.contains(word) && text.contains("for a controller"),
            "{text}"
        );
        log.expect("this is for a controller").await;
    }

    // The certificate of a node alone is not even one of a client.
    let text = refusal(credentials(dir.path(), "n2", &[Role::Node(node("n2"))]), "n1", served.address).await;
    assert!(text.contains("refuses the controller's certificate"), "{text}");

    // Another node than is meant.
    let text = refusal(right(), "n7", served.address).await;
    assert!(text.contains("is of node n1, not of node n7"), "{text}");

    // Expired, on either side.
    let hours = |hours: u64| SystemTime::now() - Duration::from_secs(3600 * hours);
    let expired = Validity::between(hours(3), hours(1));
    let text = refusal(credentials_valid(dir.path(), "e", &[Role::Controller], expired), "n1", served.address).await;
    assert!(text.contains("expired"), "{text}");
    log.expect("its certificate does not count: certificate expired").await;
    let old = credentials_valid(dir.path(), "old", &[Role::Node(node("n3"))], expired);
    let old = Served::start("n3", any_port(), old, vec![memory("old")]).await;
    let text = refusal(right(), "n3", old.address).await;
    assert!(text.contains("does not count: certificate expired"), "{text}");

    // The right one is served all the while.
    let backend = reached.all().remove(0);
    assert!(blocking(move || backend.list_volumes(&PageRequest::default()).is_ok()).await);
}

#[tokio::test]
async fn nothing_but_tls_1_3_is_spoken() {
    let log = Log::default();
    let _logging = log.start();
    let dir = tempfile::tempdir().unwrap();
    let served = serve(dir.path(), "n1", vec![memory("one")]).await;
    // HTTP/2's own greeting, as a client without TLS sends it.
    let mut plain = TcpStream::connect(served.address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(answer.len() < 16 && !answer.windows(4).any(|four| four == b"HTTP"), "{answer:?}");
    log.expect("it does not speak TLS").await;

    // A plain listener in an agent's place.
    let listener = tokio::net::TcpListener::bind(any_port()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let text = refusal(credentials(dir.path(), "c", &[Role::Controller]), "n1", address).await;
    assert!(text.contains("does not speak TLS"), "{text}");
}

/// Calls block, so they are made from a thread of their own, as the controller does.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_goes_away_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (memory("one"), memory("two"));
    let (n1, n2) = (serve(dir.path(), "n1", vec![one.clone()]).await, serve(dir.path(), "n2", vec![two]).await);
    let addresses = [("n1", n1.address), ("n2", n2.address)];
    let agents = agents(credentials(dir.path(), "c", &[Role::Controller]), &addresses);
    for id in ["n1", "n2"] {
        until(&agents, id, |state| state.is_connected && state.is_ready).await;
    }
    assert!(agents.unheard().is_empty());
    let state = agents.nodes().remove(0);
    assert!(state.heard.is_some() && state.boot_id == "boot" && state.incarnation.len() == 36, "{state:?}");
    let names = |backends: Vec<Arc<dyn Backend>>| backends.iter().map(|b| b.name().to_string()).collect::<Vec<_>>();
    assert_eq!(
        (names(agents.all()), names(agents.defaults())),
        (vec!["one".into(), "two".into()], vec!["one".into(), "two".into()])
    );
    let [first, second] = &agents.all()[..] else { panic!("two backends") };
    let (first, second) = (first.clone(), second.clone());

    let address = n1.address;
    n1.kill().await;
    until(&agents, "n1", |state| !state.is_connected).await;
    let (away, other) = (first.clone(), second.clone());
    blocking(move || {
        let asked = Instant::now();
        let error = away.list_volumes(&PageRequest::default()).unwrap_err();
        assert!(asked.elapsed() < Duration::from_millis(100));
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.chain().contains("node n1") && error.chain().contains("away since"), "{}", error.chain());
        assert_eq!(away.check().unwrap_err().kind(), ErrorKind::Unavailable);
        // What it can do is still known, so what is advertised stays.
        assert!(away.attach().is_some() && away.snapshots().is_some() && away.fence().is_some());
        assert!(other.list_volumes(&PageRequest::default()).is_ok());
    })
    .await;
    assert!(agents.unheard().is_empty(), "it was heard before");

    let own = credentials(dir.path(), "n1", &[Role::Node(node("n1"))]);
    let back = Served::start("n1", address, own, vec![one]).await;
    until(&agents, "n1", |state| state.is_connected).await;
    let again = first.clone();
    blocking(move || assert!(again.list_volumes(&PageRequest::default()).is_ok())).await;

    // An orderly stop ends the heartbeats, and does not wait for ever for who listens to them.
    let stopping = Instant::now();
    back.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(5));
    until(&agents, "n1", |state| !state.is_connected).await;

    agents.follow(&[AgentAddress { node: node("n2"), address: n2.address.to_string() }]);
    assert_eq!(names(agents.all()), ["two"]);
}

/// A machine that is off answers nothing at all.
#[tokio::test(flavor = "multi_thread")]
async fn silence_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve(dir.path(), "n1", vec![memory("one")]).await;
    // A relay that can be cut without closing anything.
    let relay = tokio::net::TcpListener::bind(any_port()).await.unwrap();
    let (address, behind) = (relay.local_addr().unwrap(), served.address);
    let (cut, is_cut) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut near, _)) = relay.accept().await {
            if *is_cut.borrow() {
                kept.push((near, None));
                continue;
            }
            let mut far = TcpStream::connect(behind).await.unwrap();
            let mut cut = is_cut.clone();
            kept.push(tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => continue,
                _ = cut.wait_for(|cut| *cut) => (near, Some(far)),
            });
        }
    });
    let agents = agents(credentials(dir.path(), "c", &[Role::Controller]), &[("n1", address)]);
    until(&agents, "n1", |state| state.is_connected).await;
    let began = Instant::now();
    cut.send(true).unwrap();
    // A call that is under way is not left hanging either.
    let backend = agents.all().remove(0);
    let asked = tokio::task::spawn_blocking(move || backend.list_volumes(&PageRequest::default()));
    let state = until(&agents, "n1", |state| !state.is_connected).await;
    assert!(state.problem.contains("no sign of life") || state.problem.contains("no connection"), "{}", state.problem);
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(asked.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_while_it_serves() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::ensure(dir.path()).unwrap();
    let renew = |name: &str, role: Role| authority.issue(dir.path(), name, &[role], Validity::days(1)).unwrap();
    let own = Credentials::load(renew("n1", Role::Node(node("n1"))), &[]).unwrap();
    let served = Served::start("n1", any_port(), own, vec![memory("one")]).await;
    let controller = Credentials::load(renew("c", Role::Controller), &[]).unwrap();
    let reached = agents(controller, &[("n1", served.address)]);
    until(&reached, "n1", |state| state.is_connected).await;
    let backend = reached.all().remove(0);
    let calls = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        let mut calls = 0;
        while began.elapsed() < Duration::from_secs(7) {
            backend.list_volumes(&PageRequest::default()).unwrap();
            calls += 1;
        }
        calls
    });
    // The whole authority is another one: old connections go on, and new ones are made with the new files alone.
    for file in ["ca.key", "ca.crt"] {
        std::fs::remove_file(dir.path().join(file)).unwrap();
    }
    let authority = Authority::ensure(dir.path()).unwrap();
    authority.issue(dir.path(), "n1", &[Role::Node(node("n1"))], Validity::days(1)).unwrap();
    authority.issue(dir.path(), "c", &[Role::Controller], Validity::days(1)).unwrap();
    assert!(calls.await.unwrap() > 10, "no call failed while the certificates changed");
    let another = agents(credentials(dir.path(), "c2", &[Role::Controller]), &[("n1", served.address)]);
    until(&another, "n1", |state| state.is_connected).await;
    assert!(until(&reached, "n1", |state| state.is_connected).await.problem.is_empty());
}

/// Two local pools of one name are no shared one: neither is used until they are told apart.
#[tokio::test(flavor = "multi_thread")]
async fn one_name_for_two_storages_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let n1 = serve(dir.path(), "n1", vec![common::placed(memory("pool"), "n1")]).await;
    let n2 = serve(dir.path(), "n2", vec![common::placed(memory("pool"), "n2")]).await;
    let addresses = [("n1", n1.address), ("n2", n2.address)];
    let agents = agents(credentials(dir.path(), "c", &[Role::Controller]), &addresses);
    for id in ["n1", "n2"] {
        until(&agents, id, |state| state.is_connected).await;
    }
    assert_eq!(agents.all().len(), 1);
    let backend = agents.all().remove(0);
    blocking(move || {
        let error = backend.list_volumes(&PageRequest::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.to_string().contains("n1") && error.to_string().contains("n2"), "{error}");
    })
    .await;
}

/// The same storage by two agents: while one is away the other serves it.
#[tokio::test(flavor = "multi_thread")]
async fn a_shared_backend_is_reached_by_any_of_its_agents() {
    let dir = tempfile::tempdir().unwrap();
    let shared = memory("shared");
    let (n1, n2) = (serve(dir.path(), "n1", vec![shared.clone()]).await, serve(dir.path(), "n2", vec![shared]).await);
    let addresses = [("n1", n1.address), ("n2", n2.address)];
    let agents = agents(credentials(dir.path(), "c", &[Role::Controller]), &addresses);
    for id in ["n1", "n2"] {
        until(&agents, id, |state| state.is_connected).await;
    }
    assert_eq!((agents.all().len(), agents.defaults().len()), (1, 1));
    let backend = agents.all().remove(0);
    let create = |name: &'static str| {
        let backend = backend.clone();
        blocking(move || {
            let spec = spec(&*backend, name);
            let guard = LockTable::default().try_lock([spec.id.as_str()]).unwrap();
            backend.ensure_volume(&guard, &spec).unwrap();
            backend.list_volumes(&PageRequest::default()).unwrap().entries.len()
        })
    };
    assert_eq!(create("a").await, 1);
    n1.kill().await;
    until(&agents, "n1", |state| !state.is_connected).await;
    assert_eq!(create("b").await, 2);
}

/// The agent's own lock: a call whose client has left keeps others of the same volume away until it ends.
#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_after_its_deadline_with_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    let slow = common::slow(memory("slow"), Duration::from_millis(1500));
    let own = credentials(dir.path(), "n1", &[Role::Node(node("n1"))]);
    let served = Served::start_with_deadline("n1", any_port(), own, vec![slow], Duration::from_millis(200)).await;
    let agents = agents(credentials(dir.path(), "c", &[Role::Controller]), &[("n1", served.address)]);
    until(&agents, "n1", |state| state.is_connected).await;
    let backend = agents.all().remove(0);
    blocking(move || {
        let spec = spec(&*backend, "v");
        let guard = LockTable::default().try_lock([spec.id.as_str()]).unwrap();
        let error = backend.ensure_volume(&guard, &spec).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{}", error.chain());
        assert!(error.chain().contains("ensure_volume"), "{}", error.chain());
        assert_eq!(backend.ensure_volume(&guard, &spec).unwrap_err().kind(), ErrorKind::Busy);
        let deadline = Instant::now() + Duration::from_secs(10);
        while backend.find_volume(&spec.id).unwrap().is_none() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(20));
        }
    })
    .await;
}
