//! Several controllers on one storage, each with locks of its own.

use super::{SIZE, Subject, at_least, lock};
use std::thread;
use volume::{AttachRequest, Backend, ErrorKind, Result, VolumeSpec};

const CONTROLLERS: usize = 4;

pub fn two_controllers_create(s: &Subject) {
    let controllers: Vec<_> = (0..CONTROLLERS).map(|_| (s.another)()).collect();
    for round in 0..8 {
        // Half of them want a larger one: whoever is first decides, and the others are told.
        let made = at_once(&controllers, |n, backend| {
            let spec = s.spec(&format!("round {round}"));
            let size = at_least(if n % 2 == 0 { SIZE } else { SIZE * 2 });
            backend.ensure_volume(&lock(spec.id.as_str()), &VolumeSpec { size, ..spec })
        });
        let found = s.find(&s.volume_id(&format!("round {round}")));
        for (n, result) in made.into_iter().enumerate() {
            match result {
                Ok(volume) => assert_eq!(volume, found),
                // Where the storage itself keeps two apart; a retry finds what the other one made.
                Err(error) if error.kind() == ErrorKind::Busy => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{}", error.chain());
                    assert!(n % 2 == 1 && found.size_bytes == SIZE, "only a wish for more is refused");
                }
            }
        }
    }
    assert_eq!(s.backend.list_volumes(&Default::default()).unwrap().entries.len(), 8);
}

pub fn two_nodes_attach(s: &Subject) {
    let controllers: Vec<_> = (0..CONTROLLERS).map(|_| (s.another)()).collect();
    let nodes: Vec<_> = (0..CONTROLLERS).map(|n| s.register(&format!("n{n}"))).collect();
    let volume = s.create("v");
    for round in 1..=8 {
        let granted = at_once(&controllers, |n, backend| {
            let request = AttachRequest { volume: &volume.id, node: &nodes[n].id, read_only: false };
            backend.attach().unwrap().attach(&lock(volume.id.as_str()), &request)
        });
        let winners: Vec<usize> = (0..CONTROLLERS).filter(|&n| granted[n].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{granted:?}");
        assert_eq!(granted[winners[0]].as_ref().unwrap().epoch.0, round);
        for refusal in granted.iter().filter_map(|g| g.as_ref().err()) {
            assert!(matches!(refusal.kind(), ErrorKind::Held | ErrorKind::Busy), "{}", refusal.chain());
        }
        assert_eq!(s.holder(&volume.id).as_ref(), Some(&nodes[winners[0]].id));
        s.detach(&volume.id, Some(&nodes[winners[0]])).unwrap();
    }
}

/// Whatever the order, in the end the volume is there whole or not at all.
pub fn create_and_delete(s: &Subject) {
    let controllers: Vec<_> = (0..CONTROLLERS).map(|_| (s.another)()).collect();
    let spec = s.spec("v");
    for _ in 0..8 {
        let done: Vec<Result<()>> = at_once(&controllers, |n, backend| {
            let guard = lock(spec.id.as_str());
            if n % 2 == 0 {
                backend.ensure_volume(&guard, &spec).map(|_| ())
            } else {
                backend.delete_volume(&guard, &spec.id)
            }
        });
        for error in done.into_iter().filter_map(Result::err) {
            assert_eq!(error.kind(), ErrorKind::Busy, "{}", error.chain());
        }
        if let Some(found) = s.backend.find_volume(&spec.id).unwrap() {
            assert_eq!((found.size_bytes, found.problem), (SIZE, None));
        }
    }
    s.delete(&spec.id).unwrap();
    assert_eq!(s.backend.find_volume(&spec.id).unwrap(), None);
}

pub(super) fn at_once<T: Send>(
    controllers: &[std::sync::Arc<dyn Backend>],
    work: impl Fn(usize, &dyn Backend) -> T + Sync,
) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> =
            controllers.iter().enumerate().map(|(n, backend)| scope.spawn(move || work(n, backend.as_ref()))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}
