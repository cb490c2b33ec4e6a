//! What a checkpoint says of its quantisation.

use std::collections::BTreeMap;
use std::path::Path;

use qvl::error::Result;

use crate::json::Fields;

/// Columns of a block of Q4_0; groups are whole blocks.
const BLOCK: u64 = 32;

/// How a checkpoint's matrices are packed. Having one says: 4 bits, groups of a multiple of 32 columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Gptq {
    /// Columns a group; `None`: a whole row.
    group_size: Option<u64>,
    /// Why no matrix can be kept as it is, by the configuration alone.
    expected: Option<String>,
    /// Why some matrices cannot, by module, once they were looked at.
    found: Option<BTreeMap<String, String>>,
}

impl Gptq {
    /// Columns a group of rows of `n_in`.
    pub fn group_size(&self, n_in: u64) -> u64 {
        self.group_size.unwrap_or(n_in)
    }

    /// Why the matrix of this module cannot be kept as it is; `None` if it can.
    pub fn reason(&self, module: &str) -> Option<&str> {
        match &self.found {
            None => self.expected.as_deref(),
            Some(found) => found.get(module).map(String::as_str),
        }
    }

    /// With what the weights say in place of what the configuration promises.
    pub fn found(&self, found: BTreeMap<String, String>) -> Self {
        Gptq { found: Some(found), ..self.clone() }
    }
}

/// The quantisation of the checkpoint in `dir`, whose `config.json` is `config`: from there, or from AutoGPTQ's own
/// `quantize_config.json`. `None`: it is not quantised. Errors (kind model): any other method or form.
pub fn read(config: &Fields, dir: &Path) -> Result<Option<Gptq>> {
    let own = dir.join("quantize_config.json");
    match config.object("quantization_config")? {
        Some(fields) => prove(&fields).map(Some),
        None if own.exists() => prove(&Fields::read(&own)?).map(Some),
        None => Ok(None),
    }
}

fn prove(fields: &Fields) -> Result<Gptq> {
    for (key, supported) in [("quant_method", "gptq"), ("checkpoint_format", "gptq")] {
        let found = fields.opt_str(key)?.unwrap_or(supported);
        if found != supported {
            return Err(fields.error(format!(
                "{key} is \"{found}\" (only \"{supported}\" is supported); convert the unquantised checkpoint instead"
            )));
        }
    }
    let bits = fields.count("bits", 1..=64)?;
    if bits != 4 {
        let message = format!("bits is {bits} (only 4 is supported); convert the unquantised checkpoint instead");
        return Err(fields.error(message));
    }
    let group_size = match fields.get("group_size").and_then(serde_json::Value::as_i64) {
        Some(-1) => None,
        _ => Some(fields.count_or("group_size", 128, BLOCK..=1 << 16)?),
    };
    if let Some(n) = group_size.filter(|n| !n.is_multiple_of(BLOCK)) {
        return Err(fields.error(format!("group_size is {n} (expected a multiple of {BLOCK}, or -1)")));
    }
    let expected = match (fields.bool_or("sym", true)?, fields.bool_or("desc_act", false)?) {
        (false, _) => Some("sym is false".to_owned()),
        (_, true) if !fields.bool_or("static_groups", false)? => Some("desc_act is true".to_owned()),
        _ => None,
    };
    Ok(Gptq { group_size, expected, found: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> std::result::Result<Gptq, String> {
        prove(&Fields::parse(text, "quantization_config").unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn says_what_is_packed_how() {
        let int4 = check(r#"{"bits": 4, "group_size": 128, "desc_act": false, "sym": true, "quant_method": "gptq"}"#);
        let int4 = int4.unwrap();
        assert_eq!((int4.group_size(4096), int4.reason("m")), (128, None));
        assert_eq!(check(r#"{"bits": 4, "group_size": -1}"#).unwrap().group_size(4096), 4096);
        assert_eq!(check(r#"{"bits": 4, "desc_act": true}"#).unwrap().reason("m"), Some("desc_act is true"));
        let found = int4.found([("a".to_owned(), "odd".to_owned())].into());
        assert_eq!((found.reason("a"), found.reason("b")), (Some("odd"), None));
    }

    #[test]
    fn refuses_what_is_packed_otherwise() {
        for (text, expect) in [
            (r#"{"bits": 8}"#, "bits is 8 (only 4 is supported)"),
            (r#"{"group_size": 128}"#, "bits is missing"),
            (r#"{"bits": 4, "quant_method": "awq"}"#, "quant_method is \"awq\""),
            (r#"{"bits": 4, "checkpoint_format": "gptq_v2"}"#, "checkpoint_format is \"gptq_v2\""),
            (r#"{"bits": 4, "group_size": 48}"#, "group_size is 48 (expected a multiple of 32, or -1)"),
            (r#"{"bits": 4, "group_size": 0}"#, "group_size is 0"),
            (r#"{"bits": 4, "group_size": "128"}"#, "group_size is \"128\""),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        }
    }
}
