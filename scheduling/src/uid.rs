//! UIDs, packed.

/// An object's UID in 16 bytes when it is an RFC 4122 UUID in lower case, as API servers make them; else as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Uid {
    Uuid([u8; 16]),
    Other(Box<str>),
}

impl Uid {
    pub fn new(text: &str) -> Self {
        parse(text.as_bytes()).map_or_else(|| Self::Other(text.into()), Self::Uuid)
    }
}

/// Reads `8-4-4-4-12` lower-case hex digits. Upper case is left as it is, or two different texts would be one UID.
fn parse(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != 36 || [8, 13, 18, 23].iter().any(|&at| text[at] != b'-') {
        return None;
    }
    let mut digits = text.iter().filter(|byte| **byte != b'-');
    let mut uuid = [0; 16];
    for byte in &mut uuid {
        *byte = hex(*digits.next()?)? << 4 | hex(*digits.next()?)?;
    }
    digits.next().is_none().then_some(uuid)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_packed_and_all_else_is_kept() {
        assert!(matches!(Uid::new("1f0e3dad-9990-4444-8888-0123456789ab"), Uid::Uuid(_)));
        for text in ["", "1F0e3dad-9990-4444-8888-0123456789ab", "1f0e3dad99904444-8888-0123456789ab----", "mirror"] {
            assert_eq!(Uid::new(text), Uid::Other(text.into()));
        }
        assert_ne!(Uid::new("1f0e3dad-9990-4444-8888-0123456789ab"), Uid::new("1f0e3dad-9990-4444-8888-0123456789ac"));
    }
}
