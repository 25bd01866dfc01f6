//! The contract between tensile's services: gRPC messages, and the vocabulary of names and codecs that travel in Kubernetes objects.
//!
//! ```text
//!  tensile/v1/*.proto ──build.rs──▶ v1          messages, clients and servers
//!  vocabulary                                   names of labels, annotations, taints, finalizers, conditions
//!  codec                                        what stands in those annotations, typed
//! ```

pub mod codec;
pub mod vocabulary;

/// Version 1 of the services. The docs of every message and field are those of `tensile/v1/*.proto`.
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("tensile.v1");
}

/// The compiled `.proto` files (a `google.protobuf.FileDescriptorSet`), for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tensile.bin"));

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::collections::HashSet;

    use prost::Message;
    use prost_types::{DescriptorProto, FileDescriptorSet};

    use super::*;

    /// Field numbers of descriptor.proto, of which paths in its `SourceCodeInfo` are made.
    mod at {
        pub const FILE_MESSAGE: i32 = 4;
        pub const FILE_ENUM: i32 = 5;
        pub const FILE_SERVICE: i32 = 6;
        pub const MESSAGE_FIELD: i32 = 2;
        pub const MESSAGE_ONEOF: i32 = 8;
        pub const MEMBER: i32 = 2;
    }

    /// Paths of a message, its fields and its oneofs. (Nested messages are only those that maps make.)
    fn of_message(message: &DescriptorProto, place: i32, into: &mut Vec<(String, Vec<i32>)>) {
        into.push((message.name().to_owned(), vec![at::FILE_MESSAGE, place]));
        for (names, kind) in [
            (message.field.iter().map(|field| field.name().to_owned()).collect::<Vec<_>>(), at::MESSAGE_FIELD),
            (message.oneof_decl.iter().map(|oneof| oneof.name().to_owned()).collect(), at::MESSAGE_ONEOF),
        ] {
            for (name, index) in names.iter().zip(0..) {
                into.push((format!("{}.{name}", message.name()), vec![at::FILE_MESSAGE, place, kind, index]));
            }
        }
    }

    #[test]
    fn every_message_field_enum_value_and_rpc_has_docs() {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let ours: Vec<_> = set.file.iter().filter(|file| file.package() == "tensile.v1").collect();
        assert_eq!(ours.len(), 2);
        for file in ours {
            let locations = &file.source_code_info.as_ref().expect("descriptors without comments").location;
            let documented: HashSet<_> = locations
                .iter()
                .filter(|location| !location.leading_comments().trim().is_empty())
                .map(|location| location.path.clone())
                .collect();
            let mut things = Vec::new();
            for (message, place) in file.message_type.iter().zip(0..) {
                of_message(message, place, &mut things);
            }
            for (kind, place) in file.enum_type.iter().zip(0..) {
                things.push((kind.name().to_owned(), vec![at::FILE_ENUM, place]));
                for (value, index) in kind.value.iter().zip(0..) {
                    things.push((value.name().to_owned(), vec![at::FILE_ENUM, place, at::MEMBER, index]));
                }
            }
            for (service, place) in file.service.iter().zip(0..) {
                things.push((service.name().to_owned(), vec![at::FILE_SERVICE, place]));
                for (rpc, index) in service.method.iter().zip(0..) {
                    things.push((rpc.name().to_owned(), vec![at::FILE_SERVICE, place, at::MEMBER, index]));
                }
            }
            let bare: Vec<_> =
                things.iter().filter(|(_, path)| !documented.contains(path)).map(|(name, _)| name).collect();
            assert!(bare.is_empty(), "without docs in {}: {bare:?}", file.name());
        }
    }
}
