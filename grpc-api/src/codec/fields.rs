//! Which fields a message has that this release does not know. Decoding passes over them, so a
//! change that asks for something new would be made without it.

use std::collections::HashMap;
use std::sync::OnceLock;

use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

use super::DESCRIPTORS;

/// Package of the messages, as descriptors have it.
const PACKAGE: &str = "aosidecar.v1";

/// The fields of a message by their numbers, those that are messages with their full names.
type Fields = HashMap<u64, Option<String>>;

/// Messages by their full names, such as `.aosidecar.v1.PeerSpec`.
type Messages = HashMap<String, Fields>;

/// The first field of `octets` that the message `name` does not have, for people. Nothing of
/// octets that are no message: decoding tells what is wrong with them.
pub(super) fn unknown_field(name: &str, octets: &[u8]) -> Option<String> {
    unknown_in(messages(), &format!(".{PACKAGE}.{name}"), octets)
}

fn messages() -> &'static Messages {
    static MESSAGES: OnceLock<Messages> = OnceLock::new();
    // Made by our own build, so it decodes; if it did not, every field would be refused.
    MESSAGES.get_or_init(|| {
        FileDescriptorSet::decode(DESCRIPTORS)
            .map_or_else(|_| Messages::new(), |set| read_messages(&set))
    })
}

fn read_messages(set: &FileDescriptorSet) -> Messages {
    let mut messages = Messages::new();
    for file in &set.file {
        let scope = format!(".{}", file.package());
        for message in &file.message_type {
            add(&mut messages, &scope, message);
        }
    }
    messages
}

fn add(messages: &mut Messages, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        add(messages, &name, nested);
    }
    let fields = message.field.iter().filter_map(|field| {
        let number = u64::try_from(field.number()).ok()?;
        let nested = field.r#type() == Type::Message;
        Some((number, nested.then(|| field.type_name().to_owned())))
    });
    let fields = fields.collect();
    messages.insert(name, fields);
}

fn unknown_in(messages: &Messages, name: &str, mut octets: &[u8]) -> Option<String> {
    let fields = messages.get(name);
    while !octets.is_empty() {
        let tag = varint(&mut octets)?;
        let number = tag >> 3;
        let Some(field) = fields.and_then(|fields| fields.get(&number)) else {
            let short = name.rsplit('.').next().unwrap_or(name);
            return Some(format!("field {number} of {short}"));
        };
        let value = value(tag & 7, &mut octets)?;
        if let (Some(nested), Some(value)) = (field, value)
            && let Some(unknown) = unknown_in(messages, nested, value)
        {
            return Some(unknown);
        }
    }
    None
}

/// Takes a value off `octets`; outer nothing when it is malformed, inner nothing when it is a
/// number.
fn value<'o>(wire_type: u64, octets: &mut &'o [u8]) -> Option<Option<&'o [u8]>> {
    let length = match wire_type {
        0 => return varint(octets).map(|_| None),
        1 => 8,
        2 => usize::try_from(varint(octets)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let (value, rest) = octets.split_at_checked(length)?;
    *octets = rest;
    Some((wire_type == 2).then_some(value))
}

/// Takes a varint off `octets`; nothing when there is none.
fn varint(octets: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(octets).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::v1;

    #[test]
    fn all_fields_that_are_known_pass() {
        let time = prost_types::Timestamp {
            seconds: 1,
            nanos: 2,
        };
        let request = v1::CreateKeyChainRequest {
            key_chain: Some(v1::KeyChainSpec {
                name: "ix".into(),
                tolerance: Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 2,
                }),
                allow_gaps: true,
                on_expiry: "keep".into(),
            }),
            keys: vec![v1::KeySpec {
                send_id: Some(0),
                recv_id: Some(255),
                algorithm: "aes-128-cmac-96".into(),
                include_tcp_options: Some(false),
                secret: vec![1; 80],
                send_lifetime: Some(v1::Lifetime {
                    start: Some(time),
                    end: None,
                }),
                accept_lifetime: Some(v1::Lifetime::default()),
            }],
        };
        let octets = request.encode_to_vec();
        assert_eq!(unknown_field("CreateKeyChainRequest", &octets), None);
    }

    #[test]
    fn unknown_fields_are_found_however_deep() {
        // keys (2) { accept_lifetime (7) { end (2) { field 3 } } }
        let octets = [0x12, 6, 0x3a, 4, 0x12, 2, 0x18, 1];
        assert_eq!(
            unknown_field("CreateKeyChainRequest", &octets),
            Some("field 3 of Timestamp".to_owned())
        );
        for wire_type in 0..8 {
            let unknown = unknown_field("CreatePeerRequest", &[0x78 | wire_type]);
            assert_eq!(unknown, Some("field 15 of CreatePeerRequest".to_owned()));
        }
        let unknown = unknown_field("NoSuchRequest", &[8, 1]);
        assert_eq!(unknown, Some("field 1 of NoSuchRequest".to_owned()));
    }

    proptest! {
        #[test]
        fn any_octets_are_taken(
            octets in prop::collection::vec(any::<u8>(), 0..256),
            name in "[a-z]{0,64}",
        ) {
            // That it returns is what is tested: what is malformed, decoding refuses.
            let _ = unknown_field("CreateKeyChainRequest", &octets);
            let mut request = v1::DeleteKeyChainRequest { name }.encode_to_vec();
            prop_assert_eq!(unknown_field("DeleteKeyChainRequest", &request), None);
            request.extend([0x7a, 0]);
            prop_assert_eq!(
                unknown_field("DeleteKeyChainRequest", &request),
                Some("field 15 of DeleteKeyChainRequest".to_owned())
            );
        }
    }
}
