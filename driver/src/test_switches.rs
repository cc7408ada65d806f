//! For tests only: with `HAWSER_TEST_NO_FENCE=yes` a fence records its proof and cuts nothing off, so that a test of late writes
//! can be seen to fail. Data is lost with it. It is refused unless `HAWSER_THIS_IS_A_TEST=yes` says that nothing here is worth
//! keeping. In the same way `HAWSER_TEST_NETWORK_POOL=yes` has a file pool count as on a network file system: the loops of other
//! nodes are out of sight, and a fence is a fork alone.

use std::ffi::OsString;
use volume::{Error, ErrorKind, Result};

pub const NO_FENCE: &str = "HAWSER_TEST_NO_FENCE";
pub const NETWORK: &str = "HAWSER_TEST_NETWORK_POOL";
pub const CONSENT: &str = "HAWSER_THIS_IS_A_TEST";

/// Whether fences are to be a pretence. Anything but a plain yes is an error, so a mistyped test cannot pass.
pub fn pretends_fences() -> Result<bool> {
    let harm = "makes every fence a pretence, so data is lost";
    is_wanted(NO_FENCE, harm, std::env::var_os(NO_FENCE), std::env::var_os(CONSENT))
}

/// Whether pools count as on a network file system.
pub fn pretends_network() -> Result<bool> {
    let harm = "keeps fences from stopping the old node, so what it still acknowledges is lost";
    is_wanted(NETWORK, harm, std::env::var_os(NETWORK), std::env::var_os(CONSENT))
}

fn is_wanted(name: &str, harm: &str, variable: Option<OsString>, consent: Option<OsString>) -> Result<bool> {
    let is_yes = |value: &OsString| value == "yes";
    let refuse = |message: String| Err(Error::new(ErrorKind::FailedPrecondition, message));
    match (variable.filter(|value| !value.is_empty()), consent) {
        (None, _) => Ok(false),
        (Some(value), _) if !is_yes(&value) => refuse(format!("{name} is {value:?}; it takes yes, in tests")),
        (Some(_), Some(consent)) if is_yes(&consent) => Ok(true),
        (Some(_), _) => refuse(format!("{name} {harm}; unset it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_two_words() {
        let yes = || Some(OsString::from("yes"));
        let is_wanted = |variable, consent| is_wanted(NETWORK, "does harm", variable, consent);
        assert!(!is_wanted(None, None).unwrap());
        assert!(!is_wanted(None, yes()).unwrap());
        assert!(!is_wanted(Some(OsString::new()), None).unwrap());
        assert!(is_wanted(yes(), None).is_err());
        assert!(is_wanted(Some("1".into()), yes()).is_err());
        assert!(is_wanted(yes(), yes()).unwrap());
    }
}
