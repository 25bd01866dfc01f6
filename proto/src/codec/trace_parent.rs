//! The annotation `tensile.dev/traceparent`: the trace under which a pod was admitted (W3C Trace Context, level 2).

use std::{fmt, str::FromStr};

/// Length of a version 00 value: `00-<32>-<16>-<2>`.
const LENGTH: usize = 55;
/// The flag that says that the caller records the trace.
const SAMPLED: u8 = 1;

/// A position in a trace. Never all zeros, which W3C reserves for "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace_id: [u8; 16],
    parent_id: [u8; 8],
    flags: u8,
}

/// A text that is no `traceparent`. As W3C says, such a value is left aside and a new trace begun: it holds no pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "annotation tensile.dev/traceparent: {problem}; it is written as 00-<32 hex digits>-<16 hex digits>-<2 hex digits> in lower case"
)]
pub struct TraceParentError {
    problem: &'static str,
}

impl TraceParent {
    /// A position of its parts; `None` when one of the ids is all zeros.
    pub fn new(trace_id: [u8; 16], parent_id: [u8; 8], sampled: bool) -> Option<Self> {
        let valid = trace_id != [0; 16] && parent_id != [0; 8];
        valid.then_some(Self { trace_id, parent_id, flags: if sampled { SAMPLED } else { 0 } })
    }

    /// Id of the whole trace.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// Id of the span that is the parent of what follows.
    pub fn parent_id(&self) -> [u8; 8] {
        self.parent_id
    }

    /// Whether the caller records the trace.
    pub fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

impl FromStr for TraceParent {
    type Err = TraceParentError;

    /// Versions later than 00 are read as 00, and what they have behind it is left aside, as W3C demands.
    fn from_str(text: &str) -> Result<Self, TraceParentError> {
        let refuse = |problem| TraceParentError { problem };
        let bytes = text.as_bytes();
        if bytes.len() < LENGTH || [2, 35, 52].iter().any(|&at| bytes[at] != b'-') {
            return Err(refuse("its parts do not have their lengths"));
        }
        let digits = refuse("it has other characters than hex digits in lower case");
        let [version] = hex(&bytes[..2]).ok_or(digits.clone())?;
        let trace_id = hex(&bytes[3..35]).ok_or(digits.clone())?;
        let parent_id = hex(&bytes[36..52]).ok_or(digits.clone())?;
        let [flags] = hex(&bytes[53..LENGTH]).ok_or(digits)?;
        match version {
            0xff => return Err(refuse("version ff is not allowed")),
            0 if bytes.len() > LENGTH => return Err(refuse("something stands behind it")),
            _ if bytes.get(LENGTH).is_some_and(|byte| *byte != b'-') => {
                return Err(refuse("its parts do not have their lengths"));
            }
            _ => {}
        }
        let position = Self::new(trace_id, parent_id, flags & SAMPLED != 0);
        position.ok_or(refuse("an id is all zeros"))
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, parent) = (u128::from_be_bytes(self.trace_id), u64::from_be_bytes(self.parent_id));
        write!(f, "00-{trace:032x}-{parent:016x}-{:02x}", self.flags)
    }
}

/// Reads `2 * N` lower-case hex digits.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut read = [0; N];
    for (byte, pair) in read.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(read)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_recommendation_reads() {
        let parent: TraceParent = EXAMPLE.parse().unwrap();
        assert!(parent.sampled());
        assert_eq!(parent.parent_id(), 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
        assert_eq!(parent.to_string(), EXAMPLE);
    }

    #[test]
    fn later_versions_are_read_as_the_first() {
        for tail in ["", "-what-comes-later"] {
            let text = format!("cc{}{tail}", &EXAMPLE[2..]);
            assert_eq!(text.parse::<TraceParent>().unwrap().to_string(), EXAMPLE);
        }
    }

    #[test]
    fn what_w3c_forbids_is_refused() {
        let upper = EXAMPLE.to_uppercase();
        let cases = [
            "",
            &EXAMPLE[..54],
            &upper,
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
        ];
        for text in cases {
            text.parse::<TraceParent>().expect_err(text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(trace_id: [u8; 16], parent_id: [u8; 8], sampled: bool) {
            if let Some(parent) = TraceParent::new(trace_id, parent_id, sampled) {
                prop_assert_eq!(parent.to_string().parse::<TraceParent>().unwrap(), parent);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9a-f-]{0,60}|\\PC{0,60}") {
            let _ = text.parse::<TraceParent>();
        }
    }
}
