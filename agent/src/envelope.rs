//! What surrounds an operation on the wire: JSON that either side can read whatever the other's version, so that what it
//! does not know is told as that, and never carried out in part.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use volume::{BackendName, Error, ErrorKind, Result};

/// Grows when the meaning of an operation changes; new operations and fields do without.
const PROTOCOL: u32 = 1;
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Invocation {
    protocol: u32,
    version: String,
    /// `None`: the agent itself is asked.
    pub(crate) backend: Option<BackendName>,
    pub(crate) operation: String,
    pub(crate) request: Value,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    version: String,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Ok(Value),
    Error(WireError),
}

/// An error of the backend, with its causes in the message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WireError {
    /// [`ErrorKind`], or one that only a newer agent knows.
    kind: Value,
    message: String,
}

impl Invocation {
    pub(crate) fn new(backend: Option<&BackendName>, operation: &str, request: &impl Serialize) -> Result<Self> {
        let request = serde_json::to_value(request).map_err(|error| unreadable("write a request", &error))?;
        let (protocol, version) = (PROTOCOL, VERSION.to_owned());
        Ok(Self { protocol, version, backend: backend.cloned(), operation: operation.to_owned(), request })
    }

    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| unreadable("write a request", &error))
    }

    /// `Unsupported` when it is of another protocol.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self> {
        let read: Self = serde_json::from_slice(json).map_err(|error| {
            let message = format!("the agent (hawser {VERSION}) cannot read what the controller asks: {error}");
            Error::new(ErrorKind::Unsupported, message)
        })?;
        if read.protocol == PROTOCOL {
            Ok(read)
        } else {
            Err(read.unsupported(&format!("protocol {} is not the agent's {PROTOCOL}", read.protocol)))
        }
    }

    /// The request as the operation understands it. `Unsupported` also when a field of it would be passed over: what the
    /// controller meant by it would not be done.
    pub(crate) fn request<T: Serialize + for<'de> Deserialize<'de>>(&self) -> Result<T> {
        let request: T = T::deserialize(&self.request)
            .map_err(|error| self.unsupported(&format!("operation {}: {error}", self.operation)))?;
        let understood = serde_json::to_value(&request).map_err(|error| unreadable("read a request", &error))?;
        match passed_over(&self.request, &understood) {
            None => Ok(request),
            Some(field) => Err(self.unsupported(&format!("operation {}: unknown field {field}", self.operation))),
        }
    }

    /// The volume or snapshot that it is about, also where nothing is locked: one that hangs holds up no other.
    pub(crate) fn subject(&self) -> Option<&str> {
        ["id", "volume", "snapshot", "target"].iter().find_map(|field| self.request.get(field)?.as_str())
    }

    pub(crate) fn unsupported(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "the agent (hawser {VERSION}) does not know what the controller (hawser {}) asks: {what}; bring both to the same version",
                self.version
            ),
        )
    }
}

impl Answer {
    pub(crate) fn new(result: Result<Value>) -> Self {
        let outcome = result.map_or_else(|error| Outcome::Error(WireError::of(&error)), Outcome::Ok);
        Self { version: VERSION.to_owned(), outcome }
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        // Values of JSON and strings: nothing of it can fail to be written.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What the operation gave. Fields that are unknown here are a newer agent's, and passed over.
    pub(crate) fn read<T: for<'de> Deserialize<'de>>(json: &[u8]) -> Result<T> {
        let answer: Self =
            serde_json::from_slice(json).map_err(|error| unreadable("read the agent's answer", &error))?;
        match answer.outcome {
            Outcome::Error(error) => Err(error.into_error()),
            Outcome::Ok(value) => T::deserialize(value).map_err(|error| {
                let of = &answer.version;
                let message =
                    format!("the answer of the agent (hawser {of}) cannot be read by this controller (hawser {VERSION}): {error}");
                Error::new(ErrorKind::Unsupported, message)
            }),
        }
    }
}

impl WireError {
    pub(crate) fn of(error: &Error) -> Self {
        let kind = serde_json::to_value(error.kind()).unwrap_or_default();
        Self { kind, message: error.chain() }
    }

    pub(crate) fn into_error(self) -> Error {
        let kind = ErrorKind::deserialize(self.kind).unwrap_or(ErrorKind::Internal);
        Error::new(kind, self.message)
    }
}

/// The path of what is in `sent` and not in `understood`.
fn passed_over(sent: &Value, understood: &Value) -> Option<String> {
    match (sent, understood) {
        (Value::Object(sent), Value::Object(understood)) => sent.iter().find_map(|(key, value)| {
            let below = match understood.get(key) {
                // Written only where it is set.
                None if value.is_null() => None,
                None => Some(String::new()),
                Some(understood) => passed_over(value, understood),
            };
            below.map(|below| format!(".{key}{below}"))
        }),
        (Value::Array(sent), Value::Array(understood)) if sent.len() == understood.len() => {
            sent.iter().zip(understood).find_map(|(sent, understood)| passed_over(sent, understood))
        }
        (sent, understood) => (sent != understood).then(String::new),
    }
}

fn unreadable(what: &str, error: &serde_json::Error) -> Error {
    Error::internal(format!("cannot {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use volume::{SizeRange, VolumeId};

    #[derive(Debug, Serialize, Deserialize)]
    struct Grow {
        id: VolumeId,
        size: SizeRange,
    }

    fn invocation(request: Value) -> Invocation {
        Invocation {
            protocol: PROTOCOL,
            version: "9.9.9".to_owned(),
            backend: None,
            operation: "grow".to_owned(),
            request,
        }
    }

    const ID: &str = "pool.v00000000000000000000000000000000";

    #[test]
    fn what_is_not_understood_is_refused_and_both_versions_are_named() {
        let size = json!({"required_bytes": 1, "limit_bytes": null});
        assert!(invocation(json!({"id": ID, "size": size})).request::<Grow>().is_ok());
        for (request, what) in [
            (json!({"id": ID, "size": size, "encrypt": true}), "unknown field .encrypt"),
            (
                json!({"id": ID, "size": {"required_bytes": 1, "limit_bytes": null, "step": 4}}),
                "unknown field .size.step",
            ),
            (json!({"id": ID}), "missing field `size`"),
            (json!({"id": "../x", "size": size}), "no volume"),
        ] {
            let error = invocation(request).request::<Grow>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            let text = error.to_string();
            for word in [what, "9.9.9", VERSION, "grow"] {
                assert!(text.contains(word), "{word}: {text}");
            }
        }
        let newer = json!({"protocol": 2, "version": "9.9.9", "backend": null, "operation": "x", "request": {}});
        let error = Invocation::from_json(newer.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("protocol 2") && error.to_string().contains("9.9.9"), "{error}");
        assert_eq!(Invocation::from_json(b"{").unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn what_a_request_is_about() {
        for (request, subject) in [
            (json!({"id": ID}), Some(ID)),
            (json!({"volume": ID, "node": "n1"}), Some(ID)),
            (json!({"base": "a", "target": "b"}), Some("b")),
            (json!({"volume": null}), None),
            (json!({}), None),
        ] {
            assert_eq!(invocation(request).subject(), subject);
        }
    }

    #[test]
    fn errors_keep_their_kind_and_their_words() {
        let cause = std::io::Error::other("no such luck");
        let error = Error::with_source(ErrorKind::Held, "node n1 holds it", cause);
        let read = Answer::read::<u32>(&Answer::new(Err(error)).to_json()).unwrap_err();
        assert_eq!((read.kind(), read.to_string().as_str()), (ErrorKind::Held, "node n1 holds it: no such luck"));
        let unknown = br#"{"version":"9","error":{"kind":"Entangled","message":"m"}}"#;
        assert_eq!(Answer::read::<u32>(unknown).unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(Answer::read::<u32>(&Answer::new(Ok(json!(7))).to_json()).unwrap(), 7);
        let odd = Answer::read::<u32>(br#"{"version":"9.9.9","ok":"seven"}"#).unwrap_err();
        assert!(odd.to_string().contains("9.9.9"), "{odd}");
    }
}
