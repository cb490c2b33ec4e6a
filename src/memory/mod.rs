//! What memory there is, what this process took of it, and what a run will take.

mod allocator;
mod machine;
mod placement;
mod plan;

pub use allocator::Allocator;
pub use machine::{available_bytes, own_bytes, peak_rss_bytes, total_bytes};
pub use placement::{Placement, Wanted, place};
pub use plan::{Item, Kind, Phase, Plan};

/// Bytes for people: 1023 B, 1.5 KiB, 4.71 GiB.
pub fn human_bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (n.checked_ilog2().unwrap_or(0) / 10).min(4) as usize;
    let scaled = n as f64 / (1u64 << (10 * unit)) as f64;
    match unit {
        0 => format!("{n} B"),
        _ if scaled >= 100.0 => format!("{scaled:.0} {}", UNITS[unit]),
        _ => format!("{scaled:.2} {}", UNITS[unit]),
    }
}

/// Bytes from people: `512M`, `4.5G`, `1536` or `64KiB`; K, M, G and T are powers of 1024, in capitals or not. `None` if it is
/// no such size or beyond 64 bits.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let n_digits = text.bytes().take_while(|c| c.is_ascii_digit() || *c == b'.').count();
    let (number, unit) = text.split_at(n_digits);
    let unit = unit.to_ascii_lowercase();
    let letter = unit.strip_suffix("ib").filter(|rest| !rest.is_empty()).or(unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match letter {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole = whole.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    // Nine digits are exact in f64, and finer than anybody means.
    let tenths = fraction.get(..fraction.len().min(9)).filter(|digits| digits.bytes().all(|c| c.is_ascii_digit()))?;
    let part = tenths.parse::<u64>().ok()? as f64 / 10f64.powi(tenths.len() as i32);
    whole.checked_add((part * (1u64 << shift) as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (5_057_000_000, "4.71 GiB")];
        for (n, expect) in cases {
            assert_eq!(human_bytes(n), expect);
        }
    }

    #[test]
    fn sizes_are_understood() {
        let cases = [
            ("0", Some(0)),
            ("1536", Some(1536)),
            ("7B", Some(7)),
            ("64KiB", Some(64 << 10)),
            ("512M", Some(512 << 20)),
            ("512mb", Some(512 << 20)),
            ("2G", Some(2 << 30)),
            ("16777215T", Some(16777215 << 40)),
            ("16777216T", None),
            ("99999999999999999999", None),
            ("", None),
            ("M", None),
            ("1iB", None),
            ("1.5G", Some(3 << 29)),
            ("4.25k", Some(4352)),
            ("0.5", Some(0)),
            ("1.G", None),
            (".5G", None),
            ("1.2.3G", None),
            ("-1", None),
            ("+1", None),
            ("1 G", None),
            ("1GG", None),
            ("1é", None),
        ];
        for (text, expect) in cases {
            assert_eq!(parse_bytes(text), expect, "{text:?}");
        }
    }
}
