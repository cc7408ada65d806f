//! Reads what `cargo test -- --show-output` prints, so that a test that says it skipped is not counted as passed.

use crate::counts::Counts;
use std::collections::BTreeMap;

/// One test binary after the other, line by line.
#[derive(Default)]
pub(crate) struct LibtestReader {
    counts: Counts,
    /// The binary that cargo announced last.
    binary: String,
    /// Set between `running N tests` and `test result:`.
    expects_result: bool,
    section: Section,
    /// The test whose captured output is being read.
    test: String,
    /// Of this binary: test (or the name in the line, where it was not captured) and reason.
    skipped: BTreeMap<String, String>,
}

#[derive(Default, PartialEq, Clone, Copy)]
enum Section {
    #[default]
    Running,
    Successes,
    Failures,
}

impl LibtestReader {
    pub(crate) fn line(&mut self, line: &str) {
        let text = line.trim();
        if let Some(binary) = text.strip_prefix("Running ").or_else(|| text.strip_prefix("Doc-tests ")) {
            self.end_binary();
            self.binary = binary.to_owned();
        } else if text.starts_with("running ") && (text.ends_with(" tests") || text.ends_with(" test")) {
            self.expects_result = true;
            (self.section, self.test) = (Section::Running, String::new());
        } else if text == "successes:" {
            self.section = Section::Successes;
        } else if text == "failures:" {
            self.section = Section::Failures;
        } else if let Some(test) = text.strip_prefix("---- ").and_then(|t| t.strip_suffix(" stdout ----")) {
            self.test = test.to_owned();
        } else if let Some(result) = text.strip_prefix("test result: ") {
            self.result(result);
        } else if let Some(name) = text.strip_prefix("test ").and_then(|t| t.strip_suffix(" ... FAILED")) {
            self.counts.failures.push(format!("{name} ({})", self.binary));
        } else if let Some(skipped) = text.strip_prefix("SKIPPED: ") {
            self.skip(skipped);
        }
    }

    /// `succeeded` is cargo's own exit: a failure that no line accounts for (it did not compile) counts as one.
    pub(crate) fn finish(mut self, succeeded: bool) -> Counts {
        self.end_binary();
        if !succeeded && self.counts.failures.is_empty() {
            self.counts.failures.push("cargo test failed before or between the tests".to_owned());
        }
        self.counts
    }

    fn skip(&mut self, skipped: &str) {
        let (name, reason) = skipped.split_once(": ").unwrap_or((skipped, "no reason given"));
        let key = match self.section {
            // A failed test is failed, whatever it printed before.
            Section::Failures => return,
            Section::Successes if !self.test.is_empty() => self.test.clone(),
            Section::Successes | Section::Running => name.to_owned(),
        };
        self.skipped.insert(key, reason.to_owned());
    }

    fn result(&mut self, result: &str) {
        self.expects_result = false;
        let passed = number_before(result, " passed").unwrap_or(0);
        let ignored = number_before(result, " ignored").unwrap_or(0);
        let skipped = std::mem::take(&mut self.skipped);
        self.counts.passed += passed.saturating_sub(skipped.len() as u64);
        self.counts.skipped.extend(skipped.into_iter().map(|(test, reason)| format!("{test}: {reason}")));
        if ignored > 0 {
            let each = (0..ignored).map(|_| format!("{}: marked #[ignore]", self.binary));
            self.counts.skipped.extend(each);
        }
    }

    /// A binary that ended without a result was killed or aborted.
    fn end_binary(&mut self) {
        if std::mem::take(&mut self.expects_result) {
            self.counts.failures.push(format!("{} ended without a result", self.binary));
        }
        self.skipped.clear();
    }
}

fn number_before(text: &str, word: &str) -> Option<u64> {
    let digits = text.split(word).next()?;
    digits.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, succeeded: bool) -> Counts {
        let mut reader = LibtestReader::default();
        text.lines().for_each(|line| reader.line(line));
        reader.finish(succeeded)
    }

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let counts = read(
            "     Running unittests src/lib.rs (target/debug/deps/host-1)\n\nrunning 3 tests\ntest a ... ok\ntest b ... ok\ntest c ... ok\n\n\
             successes:\n\n---- b stdout ----\nSKIPPED: b: no loop devices\nSKIPPED: b: again\n\n\nsuccesses:\n    a\n    b\n    c\n\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
            true,
        );
        assert_eq!(counts.summary(), "2 passed, 0 failed, 1 skipped");
        assert_eq!(counts.skipped, ["b: again"]);
    }

    #[test]
    fn a_failed_test_is_failed_whatever_it_printed() {
        let counts = read(
            "Running x\nrunning 2 tests\ntest a ... FAILED\ntest b ... ok\nfailures:\n---- a stdout ----\nSKIPPED: a: perhaps\n\
             failures:\n    a\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
            false,
        );
        assert_eq!((counts.passed, counts.failures.as_slice()), (1, ["a (x)".to_owned()].as_slice()));
        assert!(counts.skipped.is_empty());
    }

    #[test]
    fn a_binary_that_dies_and_a_tree_that_does_not_compile_count_as_failures() {
        let died = read(
            "Running x\nrunning 2 tests\ntest a ... ok\nRunning y\nrunning 0 tests\ntest result: ok. 0 passed; 0 failed; 0 ignored\n",
            false,
        );
        assert_eq!(died.failures, ["x ended without a result"]);
        assert_eq!(read("error[E0425]: cannot find value\n", false).failures.len(), 1);
    }
}
