//! What the values of a subscription message may be: WeChat tells the kind of a value by its key (`thing1`, `amount3`),
//! and refuses a message with 47003 when a value does not suit its kind. A grant is too dear to find that out, so what is
//! certain to be refused is told before; what is doubtful passes with a warning.
//!
//! The limits are those of the mini program documents' page on subscription messages. How wide characters count there is
//! not said, so a character counts as one, and a warning tells where counting them as two would be too many.

/// What is to be expected of WeChat for a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It is accepted.
    Fine,
    /// It may be refused, or cut short; why.
    Doubtful(&'static str),
    /// It is certain to be refused; what the value must be.
    Wrong(&'static str),
}

use Judgement::{Doubtful, Fine, Wrong};

/// A kind of value: the prefix of its keys, and its rule.
type Rule = (&'static str, fn(&str) -> Judgement);

/// Every kind that is known.
const RULES: &[Rule] = &[
    ("thing", thing),
    ("number", number),
    ("letter", letter),
    ("symbol", symbol),
    ("character_string", character_string),
    ("phrase", phrase),
    ("name", name),
    ("amount", amount),
    ("phone_number", phone_number),
    ("car_number", car_number),
    ("time", time),
    ("date", date),
    // The values of an enumeration are the template's own.
    ("const", |_| Fine),
    ("enum_string", |_| Fine),
];

/// Judges the value of a key.
pub fn judge(key: &str, value: &str) -> Judgement {
    let kind = key.trim_end_matches(|c: char| c.is_ascii_digit());
    match RULES.iter().find(|(prefix, _)| *prefix == kind) {
        _ if value.is_empty() => Wrong("must not be empty"),
        _ if kind.len() == key.len() => Doubtful("a key ends in a number, such as thing1"),
        Some((_, rule)) => rule(value),
        None => Doubtful("is of no kind that is known here, such as thing1"),
    }
}

fn count(value: &str) -> usize {
    value.chars().count()
}

/// Chinese characters, extensions included.
fn is_chinese(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}' | '〇')
}

fn any(value: &str, what: impl Fn(char) -> bool) -> bool {
    value.chars().any(what)
}

fn thing(value: &str) -> Judgement {
    let wide = value.chars().filter(|c| !c.is_ascii()).count();
    match count(value) {
        21.. => Wrong("must be at most 20 characters"),
        characters if characters + wide > 20 => Doubtful("has wide characters; if they count twice, it is over 20"),
        _ => Fine,
    }
}

fn number(value: &str) -> Judgement {
    let digits = value.chars().filter(char::is_ascii_digit).count();
    let unsigned = value.strip_prefix(['-', '+']).unwrap_or(value);
    if digits == 0 || digits > 32 || !is_decimal(unsigned) {
        Wrong("must be a number of at most 32 digits; decimals are allowed")
    } else if unsigned.len() < value.len() {
        Doubtful("has a sign, and only digits and decimals are documented")
    } else {
        Fine
    }
}

/// Digits, and among them at most one point.
fn is_decimal(value: &str) -> bool {
    value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && value.matches('.').count() <= 1
}

fn letter(value: &str) -> Judgement {
    let right = count(value) <= 32 && !any(value, |c| !c.is_ascii_alphabetic());
    if right { Fine } else { Wrong("must be at most 32 letters") }
}

fn symbol(value: &str) -> Judgement {
    if count(value) > 5 {
        Wrong("must be at most 5 symbols")
    } else if any(value, char::is_alphanumeric) {
        Doubtful("has letters or digits, and only symbols are documented")
    } else {
        Fine
    }
}

fn character_string(value: &str) -> Judgement {
    if count(value) > 32 || any(value, is_chinese) {
        Wrong("must be at most 32 digits, letters and symbols")
    } else if !value.is_ascii() {
        Doubtful("has characters outside ASCII, and only digits, letters and symbols are documented")
    } else {
        Fine
    }
}

fn phrase(value: &str) -> Judgement {
    if count(value) > 5 {
        Wrong("must be at most 5 Chinese characters")
    } else if any(value, |c| !is_chinese(c)) {
        Doubtful("has other than Chinese characters")
    } else {
        Fine
    }
}

fn name(value: &str) -> Judgement {
    let most = if any(value, is_chinese) { 10 } else { 20 };
    if count(value) > most {
        Wrong("must be at most 10 characters with Chinese among them, or 20 letters")
    } else if any(value, |c| c.is_ascii_digit()) {
        Doubtful("has digits, and only letters, Chinese characters and symbols are documented")
    } else {
        Fine
    }
}

fn amount(value: &str) -> Judgement {
    const SHAPE: &str =
        "must be one currency sign at most, up to 10 digits, decimals if need be, and 元 at the end if at all";
    let number = value.strip_suffix('元').unwrap_or(value);
    let sign = |c: char| !c.is_alphanumeric() && !matches!(c, '.' | ',' | ' ');
    let number = number.strip_prefix(sign).unwrap_or(number);
    let plain = number.replace(',', "");
    let whole = plain.split('.').next().unwrap_or_default();
    if whole.is_empty() || whole.len() > 10 || !is_decimal(&plain) {
        // A currency as letters is seen, and not documented.
        let letters = number.trim_start_matches(|c: char| c.is_ascii_uppercase() || c == ' ');
        let named = letters.len() < number.len() && !letters.is_empty() && letters.len() <= 13 && is_decimal(letters);
        if named { Doubtful("has letters, and only a currency sign is documented") } else { Wrong(SHAPE) }
    } else if plain.len() < number.len() {
        Doubtful("has commas, and only digits and decimals are documented")
    } else {
        Fine
    }
}

fn phone_number(value: &str) -> Judgement {
    let right = count(value) <= 17 && !any(value, char::is_alphabetic);
    if right { Fine } else { Wrong("must be at most 17 digits and symbols") }
}

fn car_number(value: &str) -> Judgement {
    if count(value) > 8 {
        Wrong("must be at most 8 characters")
    } else if any(value, |c| !c.is_alphanumeric()) {
        Doubtful("has other than letters, digits and Chinese characters")
    } else {
        Fine
    }
}

fn time(value: &str) -> Judgement {
    moment(value, |value| value.contains([':', '：']))
}

fn date(value: &str) -> Judgement {
    moment(value, |value| value.contains(['年', '-', '/', '.']))
}

fn moment(value: &str, looks_right: fn(&str) -> bool) -> Judgement {
    if !any(value, |c| c.is_ascii_digit()) {
        Wrong("must be a time or a date, such as 15:01 or 2019年10月1日 15:01")
    } else if !looks_right(value) {
        Doubtful("does not look like 15:01 or 2019年10月1日 15:01")
    } else {
        Fine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_accepts_what_is_documented() {
        for (key, value) in [
            ("thing1", "20 characters, fine."),
            ("thing2", "十个汉字十个汉字十个"),
            ("number3", "12345678901234567890123456789012"),
            ("number3", "0.5"),
            ("letter4", "abcXYZ"),
            ("symbol5", "!@#$%"),
            ("character_string6", "Order-2019/10#1"),
            ("phrase7", "审核通过"),
            ("name8", "张三"),
            ("name8", "Maria-Magdalena Rose"),
            ("amount9", "¥1234567890.55"),
            ("amount9", "100元"),
            ("phone_number10", "+86-0766-66888866"),
            ("car_number11", "粤A8Z888挂"),
            ("time12", "15:01"),
            ("time12", "2019年10月1日 15:01"),
            ("date13", "2019年10月1日"),
            ("enum_string14", "anything"),
        ] {
            assert_eq!(judge(key, value), Fine, "{key}: {value}");
        }
    }

    #[test]
    fn what_is_certain_to_be_refused_is_told() {
        for (key, value) in [
            ("thing1", "21 characters are too"),
            ("thing1", ""),
            ("number2", "123456789012345678901234567890123"),
            ("number2", "twelve"),
            ("number2", "1.2.3"),
            ("letter3", "abc1"),
            ("letter3", "abcdefghijklmnopqrstuvwxyzabcdefg"),
            ("symbol4", "!!!!!!"),
            ("character_string5", "订单"),
            ("character_string5", "123456789012345678901234567890123"),
            ("phrase6", "一二三四五六"),
            ("name7", "一二三四五六七八九十一"),
            ("name7", "abcdefghijklmnopqrstu"),
            ("amount8", "12345678901"),
            ("amount8", "免费"),
            ("amount8", "¥¥1"),
            ("phone_number9", "123456789012345678"),
            ("phone_number9", "call me"),
            ("car_number10", "123456789"),
            ("time11", "soon"),
            ("date12", "明天"),
        ] {
            assert!(matches!(judge(key, value), Wrong(_)), "{key}: {value}");
        }
    }

    #[test]
    fn what_is_doubtful_passes_with_a_word() {
        for (key, value) in [
            ("thing1", "十一个汉字是不是太多啊"),
            ("number2", "-1"),
            ("symbol3", "ab"),
            ("character_string4", "caf\u{e9}"),
            ("phrase5", "ok"),
            ("name6", "Tom2"),
            ("amount7", "1,000.00"),
            ("amount7", "USD 5"),
            ("car_number8", "A-1"),
            ("time9", "1501"),
            ("date10", "20191001"),
            ("keyword1", "x"),
            ("thing", "x"),
        ] {
            assert!(matches!(judge(key, value), Doubtful(_)), "{key}: {value}");
        }
    }
}
