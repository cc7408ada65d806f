use super::*;
use host::Effects;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Barrier, Mutex};

/// Counts up; each value remembers its writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Counter {
    value: u64,
    writer: usize,
}

impl Record for Counter {
    const WHAT: &'static str = "counter";
    const FORMAT: u32 = 2;
    const REMEDY: &'static str = "count again";

    fn upgrade(from: u32, mut record: Value) -> Option<Value> {
        (from == 1).then(|| {
            record["writer"] = 0.into();
            record
        })
    }
}

fn scratch() -> (tempfile::TempDir, Dir) {
    let place = tempfile::tempdir().unwrap();
    let dir = Dir::open(place.path(), Effects::default()).unwrap();
    (place, dir)
}

fn create(parent: &Dir) -> RecordDir<Counter> {
    RecordDir::create(parent, "c", |_| Ok(Counter { value: 0, writer: 0 })).unwrap().unwrap()
}

fn find(parent: &Dir) -> RecordDir<Counter> {
    RecordDir::find(parent, "c").unwrap().unwrap()
}

fn next(state: &RecordDir<Counter>, writer: usize) -> Counter {
    Counter { value: state.record().value + 1, writer }
}

#[test]
fn the_second_of_two_writers_loses() {
    let (_place, parent) = scratch();
    let (mut a, mut b) = (create(&parent), find(&parent));
    assert_eq!(a.publish(next(&a, 1)).unwrap(), Swap::Won);
    assert_eq!(b.publish(next(&b, 2)).unwrap(), Swap::Lost);
    assert_eq!(find(&parent).record(), &Counter { value: 1, writer: 1 });
    assert!(RecordDir::create(&parent, "c", |_| Ok(Counter { value: 9, writer: 9 })).unwrap().is_none());
    assert_eq!(parent.names().unwrap(), ["c"]);
}

#[test]
fn a_writer_that_slept_through_any_number_of_generations_loses() {
    for slept in [1, 2, KEEP - 1, KEEP, KEEP + 1, 3 * KEEP] {
        let (_place, parent) = scratch();
        let mut current = create(&parent);
        let mut sleeper = find(&parent);
        for _ in 0..slept {
            assert_eq!(current.publish(next(&current, 1)).unwrap(), Swap::Won);
        }
        assert_eq!(sleeper.publish(next(&sleeper, 2)).unwrap(), Swap::Lost, "slept through {slept}");
        assert_eq!(find(&parent).record(), &Counter { value: slept, writer: 1 });
        assert!(current.dir().names().unwrap().len() as u64 <= KEEP);
        assert_eq!(current.publish(next(&current, 1)).unwrap(), Swap::Won);
    }
}

#[test]
fn a_writer_of_a_removed_or_replaced_directory_loses() {
    for replace in [false, true] {
        let (_place, parent) = scratch();
        let mut sleeper = create(&parent);
        parent.rename_noreplace("c", &parent, "trash").unwrap();
        if replace {
            create(&parent);
        }
        assert_eq!(sleeper.publish(next(&sleeper, 2)).unwrap(), Swap::Lost);
        let mut later = RecordDir::<Counter>::find(&parent, "trash").unwrap().unwrap();
        parent.remove_tree("trash").unwrap();
        assert_eq!(later.publish(next(&later, 2)).unwrap(), Swap::Lost);
        let there = RecordDir::<Counter>::find(&parent, "c").unwrap();
        assert_eq!(there.map(|c| c.record().value), replace.then_some(0));
    }
}

/// Threads that read, stop for a random while, and write; some stop for many generations. Every value is won once,
/// and what a reader sees never goes back.
#[test]
fn many_writers_never_both_win_and_readers_never_go_back() {
    let (_place, parent) = scratch();
    create(&parent);
    const TARGET: u64 = 400;
    let won = Mutex::new(HashSet::new());
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for writer in 0..6usize {
            let (parent, won, start) = (parent.clone(), &won, &start);
            scope.spawn(move || {
                start.wait();
                let mut random = writer as u64 + 1;
                loop {
                    let mut state = find(&parent);
                    if state.record().value >= TARGET {
                        break;
                    }
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    if random >> 62 == 0 {
                        let ahead = state.generation + (random >> 33) % (2 * KEEP);
                        // Bounded, since all writers may sleep at once.
                        for _ in 0..200 {
                            if find(&parent).generation >= ahead {
                                break;
                            }
                        }
                    }
                    let value = next(&state, writer);
                    if state.publish(value.clone()).unwrap() == Swap::Won {
                        assert!(won.lock().unwrap().insert(value.value), "{} was won twice", value.value);
                    }
                }
            });
        }
        for _ in 0..2 {
            let (parent, start) = (parent.clone(), &start);
            scope.spawn(move || {
                start.wait();
                let mut last = 0;
                while last < TARGET {
                    let now = find(&parent).record().value;
                    assert!(now >= last, "went back from {last} to {now}");
                    last = now;
                }
            });
        }
    });
    // A win that somebody built on before it was seen counts as lost, so not every value needs to be in the set.
    assert!(!won.into_inner().unwrap().is_empty());
}

#[test]
fn a_crash_after_any_effect_leaves_the_old_record_or_the_new_one() {
    let run = |crash_at: u64| -> (tempfile::TempDir, bool) {
        let place = tempfile::tempdir().unwrap();
        let quiet = Dir::open(place.path(), Effects::default()).unwrap();
        let mut state = create(&quiet);
        for _ in 0..2 * KEEP {
            assert_eq!(state.publish(next(&state, 1)).unwrap(), Swap::Won);
        }
        let effects = Effects::with_action(move |n, _| {
            if n == crash_at {
                resume_unwind(Box::new("crash"));
            }
        });
        let crashing = Dir::open(place.path(), effects).unwrap();
        let mut state = find(&crashing);
        let ended = catch_unwind(AssertUnwindSafe(|| state.publish(next(&state, 2)).unwrap()));
        (place, ended.is_ok())
    };
    for crash_at in 1.. {
        let (place, finished) = run(crash_at);
        let parent = Dir::open(place.path(), Effects::default()).unwrap();
        let mut state = find(&parent);
        let value = state.record().value;
        assert!(value == 2 * KEEP || value == 2 * KEEP + 1, "effect {crash_at}: {value}");
        assert_eq!(state.publish(next(&state, 3)).unwrap(), Swap::Won);
        if finished {
            assert!(crash_at > 3, "the effects of a swap are announced");
            break;
        }
    }
}

#[test]
fn a_crash_while_creating_leaves_nothing_or_all() {
    for crash_at in 1.. {
        let place = tempfile::tempdir().unwrap();
        let effects = Effects::with_action(move |n, _| {
            if n == crash_at {
                resume_unwind(Box::new("crash"));
            }
        });
        let crashing = Dir::open(place.path(), effects).unwrap();
        let finished = catch_unwind(AssertUnwindSafe(|| create(&crashing))).is_ok();
        let parent = Dir::open(place.path(), Effects::default()).unwrap();
        if RecordDir::<Counter>::find(&parent, "c").unwrap().is_none() {
            create(&parent);
        }
        assert!(parent.names().unwrap().iter().all(|name| name == "c" || is_unfinished(name)));
        if finished {
            break;
        }
    }
}

fn overwrite(place: &Path, generation: u64, bytes: &[u8]) {
    std::fs::write(place.join("c").join(file_name(generation)), bytes).unwrap();
}

fn envelope(format: u32, generation: u64, record: &str) -> Vec<u8> {
    let body = format!(r#"{{"format":{format},"generation":{generation},"record":{record}}}"#);
    format!("{body}\n{{\"crc32c\":{}}}\n", crc32c::crc32c(body.as_bytes())).into_bytes()
}

#[test]
fn damaged_records_are_refused_and_no_older_one_is_used() {
    let (place, parent) = scratch();
    let mut state = create(&parent);
    assert_eq!(state.publish(next(&state, 1)).unwrap(), Swap::Won);
    let good = std::fs::read(place.path().join("c").join(file_name(2))).unwrap();
    let mut cases = vec![vec![], b"{}".to_vec(), b"\n\n".to_vec(), good[..good.len() / 2].to_vec()];
    for at in 0..good.len() - 1 {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        cases.push(flipped);
    }
    cases.push(envelope(2, 7, r#"{"value":1,"writer":1}"#));
    cases.push(envelope(2, 2, r#"{"value":-1}"#));
    cases.push(vec![b'x'; MAX_RECORD_BYTES as usize + 1]);
    for bytes in cases {
        overwrite(place.path(), 2, &bytes);
        let error = RecordDir::<Counter>::find(&parent, "c").err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{:?}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn newer_formats_are_refused_and_older_ones_upgraded() {
    let (place, parent) = scratch();
    create(&parent);
    overwrite(place.path(), 1, &envelope(3, 1, r#"{"anything":1}"#));
    let error = RecordDir::<Counter>::find(&parent, "c").err().unwrap();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("format 3"), "{error}");
    overwrite(place.path(), 1, &envelope(1, 1, r#"{"value":5}"#));
    assert_eq!(find(&parent).record(), &Counter { value: 5, writer: 0 });
    overwrite(place.path(), 1, &envelope(0, 1, r#"{"value":5}"#));
    assert!(RecordDir::<Counter>::find(&parent, "c").is_err());
}
