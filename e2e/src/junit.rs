//! The little of a JUnit report that Ginkgo's needs.

use crate::failure::{Result, ensure};

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// What the specification said.
    Skipped(String),
    /// Written as pending by the suite's authors; it never runs.
    Pending,
    Failed(String),
}

pub(crate) fn parse(report: &str) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for part in report.split("<testcase ").skip(1) {
        let body = part.split("</testcase>").next().unwrap_or(part);
        let tag = body.split('>').next().unwrap_or(body);
        let name = attribute(tag, "name").unwrap_or_default();
        // Set-up and tear-down of the suite count when they fail alone.
        let is_case = name.starts_with("[It] ");
        let outcome = match attribute(tag, "status").as_deref() {
            Some("passed") => Outcome::Passed,
            Some("skipped") => Outcome::Skipped(message(body, "<skipped ")),
            Some("pending") => Outcome::Pending,
            _ => Outcome::Failed(message(body, "<failure ")),
        };
        if is_case || matches!(outcome, Outcome::Failed(_)) {
            cases.push(Case { name: name.trim_start_matches("[It] ").to_owned(), outcome });
        }
    }
    ensure(!cases.is_empty(), || "the report names no test".to_owned())?;
    Ok(cases)
}

fn message(body: &str, tag: &str) -> String {
    let found = body.split_once(tag).and_then(|(_, rest)| attribute(rest.split('>').next()?, "message"));
    found.unwrap_or_else(|| "without a message".to_owned())
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let (_, rest) = tag.split_once(&format!("{name}=\""))?;
    let value = rest.split('"').next()?;
    let plain = value.replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", "\"").replace("&quot;", "\"");
    Some(plain.replace("&#39;", "'").replace("&#xA;", " ").replace("&#x9;", " ").replace("&amp;", "&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_and_outcomes() {
        let report = r#"<testsuite tests="5"><testcase name="[It] a &lt;b&gt;" status="passed" time="0"></testcase>
            <testcase name="[It] c" status="skipped"><skipped message="skipped - X not supported"></skipped></testcase>
            <testcase name="[It] d" status="failed"><failure message="Expected&#xA;x" type="failed">at y</failure></testcase>
            <testcase name="[BeforeSuite]" status="passed"></testcase>
            <testcase name="[It] e" status="pending"><skipped message="pending"></skipped></testcase></testsuite>"#;
        let cases = parse(report).unwrap();
        let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["a <b>", "c", "d", "e"]);
        assert_eq!(cases[1].outcome, Outcome::Skipped("skipped - X not supported".to_owned()));
        assert_eq!(cases[2].outcome, Outcome::Failed("Expected x".to_owned()));
        assert_eq!(cases[3].outcome, Outcome::Pending);
        assert!(parse("<testsuite></testsuite>").is_err());
    }
}
