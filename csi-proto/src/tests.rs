//! No secret of any message is ever printed: every field that the descriptor marks is filled and looked for.

use crate::FILE_DESCRIPTOR_SET;
use prost_reflect::prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, MapKey, Value};
use std::collections::HashMap;
use std::fmt::Debug;

include!(concat!(env!("OUT_DIR"), "/debug_table.rs"));

/// Decodes a message and prints it plainly and prettily.
pub(crate) type Format = fn(&[u8]) -> [String; 2];

const SENTINEL: &str = "hunter2-sentinel";

pub(crate) fn format<M: Message + Default + Debug>(encoded: &[u8]) -> [String; 2] {
    let message = M::decode(encoded).unwrap();
    [format!("{message:?}"), format!("{message:#?}")]
}

#[test]
fn no_secret_is_printed() {
    let fields = secret_fields();
    for field in &fields {
        let name = field.parent_message().full_name();
        let (_, format) = DEBUG_OF.iter().find(|(known, _)| *known == name).expect(name);
        let mut message = DynamicMessage::new(field.parent_message().clone());
        let secrets = HashMap::from([(MapKey::String("user".to_owned()), Value::String(SENTINEL.to_owned()))]);
        message.set_field(field, Value::Map(secrets));
        for text in format(&message.encode_to_vec()) {
            assert!(!text.contains(SENTINEL), "{name} prints its secret: {text}");
            for shown in [field.name(), "user", "***"] {
                assert!(text.contains(shown), "{name} does not show {shown}: {text}");
            }
        }
    }
}

/// The generated table covers what the descriptor marks, counted in another way than build.rs does: in the source.
#[test]
fn all_marked_fields_are_covered() {
    let marks = include_str!("../proto/csi/v1/csi.proto").matches("(csi_secret) = true").count();
    let fields = secret_fields();
    assert!(marks > 0);
    assert_eq!(fields.len(), marks);
    assert_eq!(DEBUG_OF.len(), marks, "each such message has one secret field");
}

#[test]
fn other_fields_are_printed() {
    let request = crate::csi::CreateVolumeRequest {
        name: "db".to_owned(),
        secrets: [("key".to_owned(), SENTINEL.to_owned())].into(),
        ..Default::default()
    };
    let text = format!("{request:?}");
    assert!(text.starts_with(r#"CreateVolumeRequest { name: "db", capacity_range: None"#), "{text}");
    assert!(text.contains(r#"secrets: {"key": "***"}"#), "{text}");
}

fn secret_fields() -> Vec<FieldDescriptor> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let secret = pool.get_extension_by_name("csi.v1.csi_secret").unwrap();
    let marked = |field: &FieldDescriptor| *field.options().get_extension(&secret) == Value::Bool(true);
    pool.all_messages().flat_map(|message| message.fields().filter(marked).collect::<Vec<_>>()).collect()
}
