//! Where settings come from: the TOML file and the environment.

use super::agent::{AGENT_KEYS, AGENTS_KEYS, RawAddress};
use super::failover::FAILOVER_KEYS;
use super::keys::{BACKEND_KEYS, Raw, TOP_KEYS, unknown_key};
use super::kubernetes::KUBERNETES_KEYS;
use super::{BackendConfig, ConfigError, DEFAULT_FILE, Setting};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Variables with our prefix that are not settings: they are read elsewhere (HAWSER_CACHE by `cargo xtask`).
const OTHER_VARIABLES: [&str; 6] = [
    "HAWSER_CACHE",
    "HAWSER_CONFIG",
    "HAWSER_TEST_EFFECT",
    "HAWSER_TEST_NETWORK_POOL",
    "HAWSER_TEST_NO_FENCE",
    "HAWSER_THIS_IS_A_TEST",
];

/// The file given, which must be there, or the default one, which need not.
pub fn read_file(given: Option<&Path>) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let path = given.unwrap_or_else(|| Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(error) if error.kind() == ErrorKind::NotFound && given.is_none() => Ok(None),
        Err(error) => Err(ConfigError(format!("cannot read the configuration {}: {error}", path.display()))),
    }
}

pub fn apply_file(raw: &mut Raw, path: &Path, text: &str) -> Result<(), ConfigError> {
    let file = File { path, text };
    let table = DeTable::parse(text).map_err(|error| {
        let message = error.message().trim_end().replace('\n', ", ");
        ConfigError(format!("{}: {message}", file.place(error.span().unwrap_or(0..0))))
    })?;
    for (key, value) in table.get_ref() {
        match key.get_ref().as_ref() {
            "backend" => file.apply_backends(raw, value)?,
            "agent" => file.apply_agent(raw, value)?,
            "agents" => file.apply_agents(raw, value)?,
            "kubernetes" => file.apply_kubernetes(raw, value)?,
            "failover" => file.apply_failover(raw, value)?,
            _ => raw.apply(&file.setting(key.get_ref(), key.span(), value)?)?,
        }
    }
    Ok(())
}

/// `HAWSER_NODE_ID=a` sets `node_id`, `HAWSER_BACKEND_DIRECTORY=/x` the first backend's `directory`. `CSI_ENDPOINT`, which
/// orchestrators set, counts less than `HAWSER_ENDPOINT`.
pub fn environment(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Vec<Setting>, ConfigError> {
    let mut settings = Vec::new();
    for (name, value) in variables {
        // None of ours is spelled with anything but ASCII.
        let Some(name) = name.to_str() else { continue };
        let Some(key) = key_of(name) else { continue };
        let origin = format!("environment variable {name}");
        let value =
            value.into_string().map_err(|value| ConfigError(format!("{origin} is {value:?}, which is not UTF-8")))?;
        settings.push(Setting { key, value, origin });
    }
    // Stable order: CSI_ENDPOINT sorts first, so that HAWSER_ENDPOINT overrides it.
    settings.sort_by(|a, b| a.origin.cmp(&b.origin));
    Ok(settings)
}

/// The key that a variable sets; `None` for those that are no settings.
fn key_of(name: &str) -> Option<String> {
    if name == "CSI_ENDPOINT" {
        return Some("endpoint".to_owned());
    }
    // What manifests call it.
    if name == "HAWSER_POD_NAME" {
        return Some("failover.replica".to_owned());
    }
    let rest = name.strip_prefix("HAWSER_")?;
    if OTHER_VARIABLES.contains(&name) || is_service_link(name) {
        return None;
    }
    let lower = rest.to_ascii_lowercase();
    let in_table = |table: &str| Some(format!("{table}.{}", lower.strip_prefix(table)?.strip_prefix('_')?));
    Some(["backend", "agent", "kubernetes", "failover"].into_iter().find_map(in_table).unwrap_or(lower))
}

/// Kubernetes sets `<NAME>_SERVICE_HOST`, `<NAME>_SERVICE_PORT…`, `<NAME>_PORT…` in every pod for each Service; no key of ours
/// looks like one.
fn is_service_link(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.contains("_PORT_")
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn apply_agent(&self, raw: &mut Raw, value: &Spanned<DeValue<'_>>) -> Result<(), ConfigError> {
        for (key, value) in self.table(value, "agent")? {
            let setting = self.setting(key.get_ref(), key.span(), value)?;
            raw.agent.apply(key.get_ref(), &setting)?;
        }
        Ok(())
    }

    fn apply_kubernetes(&self, raw: &mut Raw, value: &Spanned<DeValue<'_>>) -> Result<(), ConfigError> {
        for (key, value) in self.table(value, "kubernetes")? {
            let setting = self.setting(key.get_ref(), key.span(), value)?;
            raw.kubernetes.apply(key.get_ref(), &setting)?;
        }
        Ok(())
    }

    fn apply_failover(&self, raw: &mut Raw, value: &Spanned<DeValue<'_>>) -> Result<(), ConfigError> {
        for (key, value) in self.table(value, "failover")? {
            let setting = self.setting(key.get_ref(), key.span(), value)?;
            raw.failover.apply(key.get_ref(), &setting)?;
        }
        Ok(())
    }

    fn table<'t, 'v>(&self, value: &'t Spanned<DeValue<'v>>, name: &str) -> Result<&'t DeTable<'v>, ConfigError> {
        value
            .get_ref()
            .as_table()
            .ok_or_else(|| ConfigError(format!("{}: {name} is a table, written as [{name}]", self.place(value.span()))))
    }

    fn apply_agents(&self, raw: &mut Raw, value: &Spanned<DeValue<'_>>) -> Result<(), ConfigError> {
        for (table, span) in self.tables(value, "agents")? {
            let mut address = RawAddress { origin: self.place(span), ..RawAddress::default() };
            for (key, value) in table {
                let setting = self.setting(key.get_ref(), key.span(), value)?;
                address.apply(key.get_ref(), &setting)?;
            }
            raw.agents.push(address);
        }
        Ok(())
    }

    /// The tables of an array, and where each begins.
    fn tables<'t, 'v>(
        &self,
        value: &'t Spanned<DeValue<'v>>,
        name: &str,
    ) -> Result<Vec<(&'t DeTable<'v>, Range<usize>)>, ConfigError> {
        let wrong = |span| ConfigError(format!("{}: {name} are written as [[{name}]]", self.place(span)));
        let entries = value.get_ref().as_array().ok_or_else(|| wrong(value.span()))?;
        let table = |entry: &'t Spanned<DeValue<'v>>| {
            Ok((entry.get_ref().as_table().ok_or_else(|| wrong(entry.span()))?, entry.span()))
        };
        entries.iter().map(table).collect()
    }

    fn apply_backends(&self, raw: &mut Raw, value: &Spanned<DeValue<'_>>) -> Result<(), ConfigError> {
        for (table, _) in self.tables(value, "backend")? {
            raw.backends.push(BackendConfig::new()?);
            let index = raw.backends.len() - 1;
            for (key, value) in table {
                let setting = self.setting(key.get_ref(), key.span(), value)?;
                raw.apply_backend(index, key.get_ref(), &setting)?;
            }
        }
        Ok(())
    }

    fn setting(&self, key: &str, at: Range<usize>, value: &Spanned<DeValue<'_>>) -> Result<Setting, ConfigError> {
        let origin = self.place(at);
        let value = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => number.as_str().replace('_', ""),
            DeValue::Boolean(truth) => truth.to_string(),
            DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                let setting = Setting { key: key.to_owned(), value: String::new(), origin };
                return Err(
                    if [&TOP_KEYS[..], &BACKEND_KEYS, &AGENT_KEYS, &AGENTS_KEYS, &KUBERNETES_KEYS, &FAILOVER_KEYS]
                        .iter()
                        .any(|keys| keys.contains(&key))
                    {
                        ConfigError(format!("{}: {key} takes one string, whole number or truth value", setting.origin))
                    } else {
                        unknown_key(&setting, key, &TOP_KEYS)
                    },
                );
            }
        };
        Ok(Setting { key: key.to_owned(), value, origin })
    }

    /// `file:line` of a span.
    fn place(&self, span: Range<usize>) -> String {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        format!("{}:{}", self.path.display(), before.matches('\n').count() + 1)
    }
}
