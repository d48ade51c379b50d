//! Who a sample is: its uid, and its name in the output.

use oqvl_shard_io::{Sample, SampleKey, Uid};
use serde_json::Value;

use crate::reject::Reject;

/// What a sample is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its uid; for a sample without one, derived from its key.
    pub(crate) uid: Uid,
    /// Its key in the output: `{uid}-0` as the DataComp resharder has it, or the old key without a uid.
    pub(crate) output_key: SampleKey,
    /// Which of the two its name comes from.
    pub(crate) named_by: NamedBy,
}

/// Where the name of a sample comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NamedBy {
    /// Its metadata hold a uid.
    Uid,
    /// They do not.
    Key,
}

/// Reads the identity off the `json` member.
pub(crate) fn identify(sample: &Sample) -> Result<Identity, Reject> {
    let metadata: Option<serde_json::Map<String, Value>> =
        sample.metadata().map_err(|_| Reject::BadMetadata)?;
    match metadata.as_ref().and_then(|fields| fields.get("uid")) {
        None | Some(Value::Null) => {
            let uid = uid_of_key(&sample.key);
            Ok(Identity { uid, output_key: sample.key.clone(), named_by: NamedBy::Key })
        }
        Some(Value::String(text)) => {
            let uid: Uid = text.parse().map_err(|_| Reject::BadUid)?;
            let output_key = SampleKey::new(format!("{uid}-0")).expect("hexadecimal digits make a key");
            Ok(Identity { uid, output_key, named_by: NamedBy::Uid })
        }
        Some(_) => Err(Reject::BadUid),
    }
}

/// Stands for the uid of a sample without one: the first 128 bits of its key's BLAKE3 digest.
fn uid_of_key(key: &SampleKey) -> Uid {
    let digest = blake3::hash(key.as_str().as_bytes());
    let half = |start: usize| {
        let bytes = digest.as_bytes()[start..start + 8].try_into().expect("the slice has 8 bytes");
        u64::from_be_bytes(bytes)
    };
    Uid::from_halves(half(0), half(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: Option<&str>) -> Result<(String, String), Reject> {
        let mut sample = Sample::new(SampleKey::new("000000007").unwrap());
        if let Some(json) = json {
            sample.push("json", json.as_bytes().to_vec());
        }
        identify(&sample).map(|identity| (identity.uid.to_string(), identity.output_key.to_string()))
    }

    #[test]
    fn a_uid_names_the_sample() {
        let uid = "00000000000000000123456789abcdef";
        let expected = Ok((uid.to_owned(), format!("{uid}-0")));
        assert_eq!(check(Some(&format!(r#"{{"uid": "{uid}"}}"#))), expected);
        assert_eq!(check(Some(&format!(r#"{{"uid": "{}"}}"#, uid.to_uppercase()))), expected);
    }

    #[test]
    fn without_a_uid_the_key_does() {
        let digest = blake3::hash(b"000000007").to_hex().to_string();
        let expected = Ok((digest[..32].to_owned(), "000000007".to_owned()));
        for json in [None, Some("{}"), Some(r#"{"uid": null}"#)] {
            assert_eq!(check(json), expected);
        }
    }

    #[test]
    fn rubbish_is_rejected() {
        for json in ["", "{", "[]", "7", "null"] {
            assert_eq!(check(Some(json)), Err(Reject::BadMetadata), "{json}");
        }
        for uid in ["\"\"", "\"7\"", "7", "[]", "\"0000000000000000000000000000000g\""] {
            assert_eq!(check(Some(&format!(r#"{{"uid": {uid}}}"#))), Err(Reject::BadUid), "{uid}");
        }
    }
}
