//! Takes `metadata.managedFields` out of JSON before it is decoded.
//!
//! We never read them, an API server cannot be asked to leave them out, and decoded they are a tree of maps: about half
//! of the bytes of a pod and most of its allocations. The text is overwritten with blanks in place, so nothing moves.

use memchr::memchr2;

const KEY: &[u8] = b"managedFields";
const METADATA: &[u8] = b"metadata";

/// Where the object's own fields are: how many brackets are open inside its `metadata`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `{"type":...,"object":{"metadata":{`
    WatchEvent = 3,
    /// `{"items":[{"metadata":{`
    List = 4,
}

/// Blanks out the managed fields of the object or objects in `json`. Text that is not JSON is left to the decoder.
pub(super) fn blank_out(json: &mut [u8], shape: Shape) {
    let metadata_depth = shape as usize;
    let mut depth = 0_usize;
    let mut at = 0;
    // The string last seen; a key if a colon follows it.
    let mut last_string = (0, 0);
    let mut in_metadata = false;
    while let Some(&byte) = json.get(at) {
        match byte {
            b'"' => {
                let Some(end) = string_end(json, at) else { return };
                last_string = (at + 1, end);
                at = end;
            }
            b'{' | b'[' => {
                depth += 1;
                if depth == metadata_depth {
                    in_metadata = byte == b'{' && json.get(last_string.0..last_string.1) == Some(METADATA);
                }
            }
            b'}' | b']' => {
                let Some(outer) = depth.checked_sub(1) else { return };
                if depth == metadata_depth && in_metadata {
                    in_metadata = false;
                    // One object holds one metadata: the rest of an event need not be looked at.
                    if shape == Shape::WatchEvent {
                        return;
                    }
                }
                depth = outer;
            }
            b':' if in_metadata && depth == metadata_depth && json.get(last_string.0..last_string.1) == Some(KEY) => {
                let Some(end) = value_end(json, at + 1) else { return };
                blank_member(json, last_string.0 - 1, end);
                at = end - 1;
            }
            _ => {}
        }
        at += 1;
    }
}

/// The place of the quote that ends the string beginning at `start`.
fn string_end(json: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        at += memchr2(b'"', b'\\', json.get(at..)?)?;
        if json.get(at) == Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}

/// The place after the array or object that begins at or after `at`; `None` for other values.
fn value_end(json: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    loop {
        match json.get(at)? {
            b'"' => at = string_end(json, at)?,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            byte if depth == 0 && !byte.is_ascii_whitespace() => return None,
            _ => {}
        }
        at += 1;
    }
}

/// Blanks a member out together with one comma beside it.
fn blank_member(json: &mut [u8], mut start: usize, mut end: usize) {
    let after = json.iter().skip(end).position(|byte| !byte.is_ascii_whitespace()).map(|ahead| end + ahead);
    match after {
        Some(comma) if json.get(comma) == Some(&b',') => end = comma + 1,
        // It was the last member, so the comma before it must go.
        _ => {
            let before = json.iter().take(start).rposition(|byte| !byte.is_ascii_whitespace());
            if let Some(comma) = before.filter(|&at| json.get(at) == Some(&b',')) {
                start = comma;
            }
        }
    }
    if let Some(member) = json.get_mut(start..end) {
        member.fill(b' ');
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn after(value: &Value, shape: Shape) -> Value {
        let mut text = serde_json::to_vec(value).unwrap();
        blank_out(&mut text, shape);
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn it_goes_from_an_event_wherever_it_stands_among_the_members() {
        let fields = json!([{"manager": "x", "fieldsV1": {"f:a\"]}\\": {}}}]);
        for others in [json!({}), json!({"a": 1}), json!({"z": "\\\""}), json!({"a": [1], "z": {}})] {
            let mut metadata = others.clone();
            metadata["managedFields"] = fields.clone();
            let event = json!({"type": "ADDED", "object": {"metadata": metadata, "spec": {"managedFields": [1]}}});
            let expected = json!({"type": "ADDED", "object": {"metadata": others, "spec": {"managedFields": [1]}}});
            assert_eq!(after(&event, Shape::WatchEvent), expected);
        }
    }

    #[test]
    fn it_goes_from_every_object_of_a_list() {
        let item =
            |name: &str| json!({"metadata": {"managedFields": [{}], "name": name}, "x": [{"managedFields": []}]});
        let list = json!({"metadata": {"resourceVersion": "7"}, "items": [item("a"), item("b")]});
        let bare = |name: &str| json!({"metadata": {"name": name}, "x": [{"managedFields": []}]});
        let expected = json!({"metadata": {"resourceVersion": "7"}, "items": [bare("a"), bare("b")]});
        assert_eq!(after(&list, Shape::List), expected);
    }

    #[test]
    fn look_alikes_stay() {
        let event = json!({"type": "ADDED", "object": {"metadata": {
            "annotations": {"managedFields": "text", "last": "{\"managedFields\":[1]}"},
            "labels": {"metadata": "managedFields"},
        }, "spec": {"template": {"metadata": {"managedFields": [1]}}}}});
        assert_eq!(after(&event, Shape::WatchEvent), event);
        let null = json!({"type": "ADDED", "object": {"metadata": {"managedFields": null}}});
        assert_eq!(after(&null, Shape::WatchEvent), null);
    }

    #[test]
    fn broken_text_is_left_to_the_decoder() {
        for text in ["", "{", "}}}", "{\"type", "{\"object\":{\"metadata\":{\"managedFields\":[", "\"\\"] {
            let mut bytes = text.as_bytes().to_vec();
            blank_out(&mut bytes, Shape::WatchEvent);
            assert_eq!(bytes, text.as_bytes());
        }
    }
}
