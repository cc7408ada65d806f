//! Sizes, times and durations as people write and read them.

/// Parses a size in bytes: a whole number with an optional suffix. `K`, `M`, `G`, `T`, `P` (also `Ki`, `KiB`, ...) count in
/// 1024s, `KB`, `MB`, `GB`, `TB`, `PB` in 1000s.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size; write for example 10GiB, 512M or 1073741824 (bytes)");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let suffix = text[digits..].trim_start().to_ascii_lowercase();
    let mut rest = suffix.chars();
    let power = match rest.next() {
        None | Some('b') if rest.as_str().is_empty() => return Ok(number),
        Some(unit) => "kmgtp".find(unit).ok_or_else(wrong)? + 1,
        None => return Err(wrong()),
    };
    let base: u64 = match rest.as_str() {
        "" | "i" | "ib" => 1024,
        "b" => 1000,
        _ => return Err(wrong()),
    };
    let factor = base.pow(u32::try_from(power).map_err(|_| wrong())?);
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is more bytes than a size can be"))
}

/// `10GiB`, `1.5GiB`, `512B`.
pub fn format_size(bytes: u64) -> String {
    let mut unit = 0;
    let mut scaled = bytes;
    while scaled >= 1024 && unit < 5 {
        scaled /= 1024;
        unit += 1;
    }
    let name = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit];
    let one = 1u64 << (10 * unit);
    let tenths = (bytes % one) * 10 / one;
    if tenths == 0 { format!("{scaled}{name}") } else { format!("{scaled}.{tenths}{name}") }
}

/// Milliseconds since the Unix epoch as `2026-01-31T12:00:00Z`.
pub fn format_time(at_ms: u64) -> String {
    let seconds = at_ms / 1000;
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `850 us`, `12.3 ms`, `4.56 s`.
pub fn format_duration(duration: std::time::Duration) -> String {
    let us = duration.as_micros();
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", duration.as_secs_f64()),
    }
}

/// Days since 1970-01-01 to year, month, day in the Gregorian calendar, counting in 400-year eras from 0000-03-01.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("10GiB", 10 << 30),
            ("10G", 10 << 30),
            ("10gi", 10 << 30),
            ("10GB", 10_000_000_000),
            ("1 MiB", 1 << 20),
            ("3K", 3072),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "G", "-1", "1.5G", "10X", "10GiBs", "99999999999P", "1e9", " 1"] {
            assert!(parse_size(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(format_size(10 << 30), "10GiB");
        assert_eq!(format_size(1536 << 20), "1.5GiB");
        assert_eq!(format_size(u64::MAX), "16383.9PiB");
    }

    #[test]
    fn times() {
        assert_eq!(format_time(0), "1970-01-01T00:00:00Z");
        assert_eq!(format_time(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(format_time(1_798_761_599_999), "2026-12-31T23:59:59Z");
    }
}
