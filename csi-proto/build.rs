//! Compiles the protocols without `protoc`, and writes a `Debug` that hides secrets for every message that has any.
//!
//! Which fields are secret stands in the descriptor (CSI's `csi_secret` option), so a field added to the protocol is
//! covered when it is marked there.

use prost_reflect::{DescriptorPool, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value};
use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;

const FILES: [&str; 2] = ["csi/v1/csi.proto", "pluginregistration/registration.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    // Encoded by the compiler itself: a round trip through prost-types would drop the custom options.
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    let pool = compiler.descriptor_pool();
    let secret = pool.get_extension_by_name("csi.v1.csi_secret").ok_or("csi.proto defines csi_secret")?;
    let messages = messages_with_secrets(&pool, &secret)?;
    std::fs::write(out.join("redacted.rs"), redacted_debug(&messages, &secret))?;
    std::fs::write(out.join("debug_table.rs"), debug_table(&messages))?;

    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .btree_map(".")
        .skip_debug(messages.iter().map(MessageDescriptor::full_name))
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// Top-level messages with at least one secret field of their own. A message that only contains such a message needs
/// nothing: its derived `Debug` calls theirs.
fn messages_with_secrets(
    pool: &DescriptorPool,
    secret: &ExtensionDescriptor,
) -> Result<Vec<MessageDescriptor>, Box<dyn Error>> {
    let mut found = Vec::new();
    for message in pool.all_messages() {
        let fields: Vec<_> = message.fields().filter(|field| is_secret(field, secret)).collect();
        if fields.is_empty() {
            continue;
        }
        // Fail the build rather than print a secret in a shape that was not thought of.
        if message.parent_message().is_some() {
            return Err(format!("{}: a nested message with a secret needs a path here", message.full_name()).into());
        }
        if let Some(field) = fields.iter().find(|field| !is_text_map(field)) {
            return Err(
                format!("{}: a secret that is no map of strings needs a redaction here", field.full_name()).into()
            );
        }
        found.push(message);
    }
    Ok(found)
}

fn redacted_debug(messages: &[MessageDescriptor], secret: &ExtensionDescriptor) -> String {
    let mut code = String::new();
    for message in messages {
        let name = message.name();
        let _ = writeln!(code, "impl ::core::fmt::Debug for {name} {{");
        let _ = writeln!(code, "    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{");
        let _ = writeln!(code, "        f.debug_struct(\"{name}\")");
        for field in message.fields().filter(|field| field.containing_oneof().is_none()) {
            let field_name = field.name();
            let member = if field_name == "type" { "r#type" } else { field_name };
            let shown = if is_secret(&field, secret) {
                format!("&crate::redact::Keys(&self.{member})")
            } else {
                format!("&self.{member}")
            };
            let _ = writeln!(code, "            .field(\"{field_name}\", {shown})");
        }
        for oneof in message.oneofs() {
            let _ = writeln!(code, "            .field(\"{0}\", &self.{0})", oneof.name());
        }
        let _ = writeln!(code, "            .finish()\n    }}\n}}\n");
    }
    code
}

/// For the tests: decodes a message of that name and formats it both ways.
fn debug_table(messages: &[MessageDescriptor]) -> String {
    let mut code = String::from("pub(crate) const DEBUG_OF: &[(&str, crate::tests::Format)] = &[\n");
    for message in messages {
        let _ = writeln!(
            code,
            "    (\"{}\", crate::tests::format::<crate::csi::{}>),",
            message.full_name(),
            message.name()
        );
    }
    code.push_str("];\n");
    code
}

fn is_secret(field: &FieldDescriptor, secret: &ExtensionDescriptor) -> bool {
    matches!(field.options().get_extension(secret).as_ref(), Value::Bool(true))
}

fn is_text_map(field: &FieldDescriptor) -> bool {
    field.is_map()
        && matches!(field.kind(), Kind::Message(entry)
            if entry.map_entry_value_field().kind() == Kind::String)
}
