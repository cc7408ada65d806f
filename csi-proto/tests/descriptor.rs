//! Our protocol is the published one: every fact of our descriptor is compared with the Go module's.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test; the Go tool is no part of hawser"
)]

use csi_proto::FILE_DESCRIPTOR_SET;
use prost_reflect::prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, ReflectMessage, Value,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const PACKAGE: &str = "csi.v1";

#[test]
fn same_as_published() {
    if Command::new("go").arg("version").output().is_err() {
        println!("SKIPPED: same_as_published: go is not installed");
        return;
    }
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/tools/csi-descriptor");
    let run = Command::new("go").args(["run", "."]).current_dir(tool).output().unwrap();
    assert!(run.status.success(), "go run .: {}", String::from_utf8_lossy(&run.stderr));
    let published = facts(&run.stdout);
    assert!(published.len() > 500, "the published descriptor has only {} facts", published.len());
    let differences = differences(&published, &facts(FILE_DESCRIPTOR_SET));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn an_altered_number_is_a_difference() {
    let altered = altered(|field| field.set_field_by_name("number", Value::I32(99)));
    let found = differences(&facts(FILE_DESCRIPTOR_SET), &facts(&altered));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("csi.v1.CreateVolumeRequest.secrets") && found[0].contains("number 99"), "{found:?}");
}

#[test]
fn a_lost_secret_mark_is_a_difference() {
    let altered = altered(|field| field.clear_field_by_name("options"));
    let found = differences(&facts(FILE_DESCRIPTOR_SET), &facts(&altered));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("csi_secret"), "{found:?}");
}

/// What a name of the package stands for, in words; one entry a field, enum value, method and so on.
type Facts = BTreeMap<String, String>;

fn differences(theirs: &Facts, ours: &Facts) -> Vec<String> {
    let names = theirs.keys().chain(ours.keys().filter(|name| !theirs.contains_key(*name)));
    let absent = "absent".to_owned();
    names
        .map(|name| (name, theirs.get(name).unwrap_or(&absent), ours.get(name).unwrap_or(&absent)))
        .filter(|(_, theirs, ours)| theirs != ours)
        .map(|(name, theirs, ours)| format!("{name}: published {theirs}; ours {ours}"))
        .collect()
}

fn facts(descriptor_set: &[u8]) -> Facts {
    let pool = DescriptorPool::decode(descriptor_set).unwrap();
    let mut facts = Facts::new();
    let marks: Vec<_> = pool.all_extensions().filter(|extension| extension.full_name().starts_with(PACKAGE)).collect();
    for mark in &marks {
        let what = format!("extends {} number {}", mark.containing_message().full_name(), mark.number());
        facts.insert(format!("extension {}", mark.full_name()), what + &format!(" {:?}", mark.kind()));
    }
    for message in pool.all_messages().filter(|message| message.package_name() == PACKAGE) {
        let reserved: Vec<_> = message.reserved_ranges().collect();
        let options = set_marks(&marks, &message.options());
        facts.insert(format!("message {}", message.full_name()), format!("reserved {reserved:?}{options}"));
        for field in message.fields() {
            facts.insert(format!("field {}", field.full_name()), describe(&field, &marks));
        }
    }
    for item in pool.all_enums().filter(|item| item.package_name() == PACKAGE) {
        let reserved: Vec<_> = item.reserved_ranges().collect();
        let options = set_marks(&marks, &item.options());
        facts.insert(format!("enum {}", item.full_name()), format!("reserved {reserved:?}{options}"));
        for value in item.values() {
            let options = set_marks(&marks, &value.options());
            let name = format!("value {}.{}", item.full_name(), value.name());
            facts.insert(name, format!("number {}{options}", value.number()));
        }
    }
    for service in pool.services().filter(|service| service.package_name() == PACKAGE) {
        facts.insert(format!("service {}", service.full_name()), set_marks(&marks, &service.options()));
        for method in service.methods() {
            let what = format!(
                "{} (stream {}) -> {} (stream {}){}",
                method.input().full_name(),
                method.is_client_streaming(),
                method.output().full_name(),
                method.is_server_streaming(),
                set_marks(&marks, &method.options())
            );
            facts.insert(format!("method {}", method.full_name()), what);
        }
    }
    facts
}

fn describe(field: &FieldDescriptor, marks: &[ExtensionDescriptor]) -> String {
    let kind = match field.kind() {
        Kind::Message(message) => format!("message {}", message.full_name()),
        Kind::Enum(item) => format!("enum {}", item.full_name()),
        scalar => format!("{scalar:?}"),
    };
    format!(
        "number {} {:?} {kind} map {} packed {} presence {} oneof {:?}{}",
        field.number(),
        field.cardinality(),
        field.is_map(),
        field.is_packed(),
        field.supports_presence(),
        field.containing_oneof().map(|oneof| oneof.name().to_owned()),
        set_marks(marks, &field.options())
    )
}

/// The package's own options (csi_secret, alpha_*) that are set here.
fn set_marks(marks: &[ExtensionDescriptor], options: &DynamicMessage) -> String {
    let mut names: Vec<_> = marks
        .iter()
        .filter(|mark| mark.containing_message() == options.descriptor() && options.has_extension(mark))
        .map(|mark| format!(" {}={:?}", mark.name(), options.get_extension(mark)))
        .collect();
    names.sort_unstable();
    names.concat()
}

/// Our descriptor set with one field's descriptor changed: the secrets of CreateVolumeRequest.
fn altered(change: impl Fn(&mut DynamicMessage)) -> Vec<u8> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let set = pool.get_message_by_name("google.protobuf.FileDescriptorSet").unwrap();
    let mut set = DynamicMessage::decode(set, FILE_DESCRIPTOR_SET).unwrap();
    let file = entry(&mut set, "file", "csi/v1/csi.proto");
    let field = entry(entry(file, "message_type", "CreateVolumeRequest"), "field", "secrets");
    change(field);
    set.encode_to_vec()
}

fn entry<'a>(message: &'a mut DynamicMessage, list: &str, name: &str) -> &'a mut DynamicMessage {
    let Some(Value::List(items)) = message.get_field_by_name_mut(list) else { panic!("{list} is no list") };
    items
        .iter_mut()
        .filter_map(|item| if let Value::Message(message) = item { Some(message) } else { None })
        .find(|item| item.get_field_by_name("name").is_some_and(|found| found.as_str() == Some(name)))
        .unwrap()
}
