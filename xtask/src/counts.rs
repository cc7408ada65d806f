//! What a step found, and the lines that tests report themselves with.

/// Passed, failed and skipped. A skipped test is never counted as passed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    /// One line each: what failed, and why where that is known.
    pub(crate) failures: Vec<String>,
    /// One line each: `name: reason`.
    pub(crate) skipped: Vec<String>,
}

impl Counts {
    pub(crate) fn pass() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    pub(crate) fn fail(why: impl Into<String>) -> Self {
        Self { failures: vec![why.into()], ..Self::default() }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
        self.skipped.extend(other.skipped);
    }

    /// `N passed, N failed`, and `, N skipped` where something was.
    pub(crate) fn summary(&self) -> String {
        let skipped = match self.skipped.len() {
            0 => String::new(),
            n => format!(", {n} skipped"),
        };
        format!("{} passed, {} failed{skipped}", self.passed, self.failures.len())
    }
}

/// Counts the lines that the `e2e` binary and `hawser demo` print: `ok NAME`, `FAILED NAME: why` and
/// `SKIPPED: NAME: why`. Other lines are only for the log.
pub(crate) fn count_line(counts: &mut Counts, line: &str) {
    if let Some(name) = line.strip_prefix("ok ") {
        counts.passed += u64::from(!name.trim().is_empty());
    } else if let Some(failure) = line.strip_prefix("FAILED ") {
        counts.failures.push(failure.trim().to_owned());
    } else if let Some(skipped) = line.strip_prefix("SKIPPED: ") {
        counts.skipped.push(skipped.trim().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_summary() {
        let mut counts = Counts::default();
        for line in ["ok a", "okay", "FAILED b: torn", "SKIPPED: c: no root", " ok indented", "ok d"] {
            count_line(&mut counts, line);
        }
        assert_eq!(counts.summary(), "2 passed, 1 failed, 1 skipped");
        assert_eq!(Counts::pass().summary(), "1 passed, 0 failed");
    }
}
