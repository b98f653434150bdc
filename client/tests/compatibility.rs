//! The public contract only grows: everything in the committed descriptor must still be there, with
//! the same number, name, type and label.
//!
//! After an addition, write the committed descriptor anew and commit it with the change:
//! `DTKV_WRITE_DESCRIPTOR=1 cargo test -p dtkv-client --test compatibility`. Breaking changes are
//! refused even then.

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
};
use std::collections::BTreeMap;
use std::path::PathBuf;

fn committed_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("proto/dtkv_v1.bin")
}

/// Everything of the contract by its full name, as text that must not change.
type Contract = BTreeMap<String, String>;

fn contract(set: &FileDescriptorSet) -> Contract {
    let mut items = Contract::new();
    for file in set.file.iter().filter(|file| file.package().starts_with("dtkv.")) {
        let package = file.package();
        file.message_type.iter().for_each(|message| add_message(package, message, &mut items));
        file.enum_type.iter().for_each(|of| add_enum(package, of, &mut items));
        file.service.iter().for_each(|service| add_service(package, service, &mut items));
    }
    items
}

fn add_message(parent: &str, message: &DescriptorProto, items: &mut Contract) {
    let name = format!("{parent}.{}", message.name());
    items.insert(name.clone(), "message".to_string());
    for field in &message.field {
        items.insert(format!("{name} field {}", field.number()), describe_field(message, field));
    }
    message.nested_type.iter().for_each(|nested| add_message(&name, nested, items));
    message.enum_type.iter().for_each(|of| add_enum(&name, of, items));
}

fn describe_field(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let oneof = field.oneof_index.and_then(|index| message.oneof_decl.get(index as usize));
    let oneof = oneof.map(|oneof| oneof.name().to_string()).unwrap_or_default();
    let (name, label, kind, of) = (field.name(), field.label(), field.r#type(), field.type_name());
    format!("{name}: {label:?} {kind:?} {of} optional={} oneof={oneof}", field.proto3_optional())
}

fn add_enum(parent: &str, of: &EnumDescriptorProto, items: &mut Contract) {
    let name = format!("{parent}.{}", of.name());
    for value in &of.value {
        items.insert(format!("{name} value {}", value.number()), value.name().to_string());
    }
    items.insert(name, "enum".to_string());
}

fn add_service(parent: &str, service: &ServiceDescriptorProto, items: &mut Contract) {
    for method in &service.method {
        let name = format!("{parent}.{}/{}", service.name(), method.name());
        let streams = (method.client_streaming(), method.server_streaming());
        let text = format!("{} -> {} streams={streams:?}", method.input_type(), method.output_type());
        items.insert(name, text);
    }
}

/// What of the old contract is gone or has changed.
fn breaks(old: &Contract, new: &Contract) -> Vec<String> {
    let broken = old.iter().filter(|(name, text)| new.get(*name) != Some(*text));
    broken.map(|(name, text)| format!("{name}: was {text:?}, is {:?}", new.get(name))).collect()
}

fn without_comments(mut set: FileDescriptorSet) -> FileDescriptorSet {
    set.file.iter_mut().for_each(|file| file.source_code_info = None);
    set
}

fn current() -> FileDescriptorSet {
    without_comments(FileDescriptorSet::decode(dtkv_client::v1::DESCRIPTOR).expect("the build wrote it"))
}

#[test]
fn contract_only_grows() {
    let new = contract(&current());
    let path = committed_path();
    if let Ok(bytes) = std::fs::read(&path) {
        let old = contract(&FileDescriptorSet::decode(bytes.as_slice()).unwrap());
        let broken = breaks(&old, &new);
        assert!(
            broken.is_empty(),
            "the contract is broken; take a new number or name instead:\n{}",
            broken.join("\n")
        );
    }
    if std::env::var_os("DTKV_WRITE_DESCRIPTOR").is_some() {
        std::fs::write(&path, current().encode_to_vec()).unwrap();
    }
    let committed = std::fs::read(&path).expect("proto/dtkv_v1.bin is committed");
    let committed = contract(&FileDescriptorSet::decode(committed.as_slice()).unwrap());
    let missing = breaks(&new, &committed);
    assert!(
        missing.is_empty(),
        "additions are not in the committed descriptor; run DTKV_WRITE_DESCRIPTOR=1 cargo test -p dtkv-client \
         --test compatibility:\n{}",
        missing.join("\n")
    );
}

#[test]
fn every_kind_of_break_is_found() {
    let old = contract(&current());
    let broken_by = |change: fn(&mut FileDescriptorSet)| {
        let mut set = current();
        change(&mut set);
        breaks(&old, &contract(&set)).len()
    };
    fn kv(set: &mut FileDescriptorSet) -> &mut prost_types::FileDescriptorProto {
        set.file.iter_mut().find(|file| file.name().ends_with("kv.proto")).unwrap()
    }
    assert_eq!(broken_by(|_| {}), 0);
    assert_eq!(broken_by(|set| kv(set).message_type[0].field[0].number = Some(99)), 1);
    assert_eq!(broken_by(|set| kv(set).message_type[0].field[0].name = Some("other".into())), 1);
    assert_eq!(broken_by(|set| kv(set).message_type[0].field[0].r#type = Some(3)), 1);
    assert_eq!(broken_by(|set| kv(set).message_type[0].field[0].label = Some(3)), 1);
    assert_eq!(broken_by(|set| kv(set).enum_type[0].value[2].name = Some("OTHER".into())), 1);
    assert_eq!(broken_by(|set| drop(kv(set).service[0].method.pop())), 1);
    assert_eq!(broken_by(|set| kv(set).service[0].method[0].client_streaming = Some(true)), 1);
    let added = |set: &mut FileDescriptorSet| {
        let mut field = kv(set).message_type[0].field[0].clone();
        (field.number, field.name) = (Some(99), Some("added".into()));
        kv(set).message_type[0].field.push(field);
    };
    assert_eq!(broken_by(added), 0);
}
