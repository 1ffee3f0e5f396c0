//! Dates and times as WeChat documents them: `2019年10月1日`, `2019年10月`, `10月1日`, or the numbers with `-`, `/` or
//! `.` between them; `15:01` or `15:01:30`, alone or after a date; and two of these with `~` between.

/// What a date, a time, or a range of them consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) date: bool,
    pub(super) time: bool,
    /// False for numbers that no date has, such as 2月30日 or 24:00.
    pub(super) exists: bool,
    /// True for numbers that are certainly refused, such as the 13th month or 25:99.
    impossible: bool,
}

impl Moment {
    /// `None` if it is none of the documented formats.
    pub(super) fn of(text: &str) -> Option<Self> {
        let Some((from, to)) = text.split_once('~') else { return Self::single(text) };
        let (from, to) = (Self::single(from.trim_end())?, Self::single(to.trim_start())?);
        Some(Self {
            // The date of the end may be missing if that is on the same day.
            date: from.date && (to.date || from.time && to.time),
            time: from.time && to.time,
            exists: from.exists && to.exists,
            impossible: from.impossible || to.impossible,
        })
    }

    fn single(text: &str) -> Option<Self> {
        let Some((date, rest)) = date(text) else { return time(text) };
        if rest.is_empty() {
            return Some(date);
        }
        let is_apart = rest.starts_with(' ') || text[..text.len() - rest.len()].ends_with(['月', '日']);
        let time = time(rest.trim_start()).filter(|_| is_apart)?;
        let (exists, impossible) = (date.exists && time.exists, date.impossible || time.impossible);
        Some(Self { date: true, time: true, exists, impossible })
    }
}

pub(super) fn is_impossible(value: &str) -> bool {
    Moment::of(value).is_some_and(|moment| moment.impossible)
}

/// True for ISO 8601 with a `T` and a time zone, as programs print it: `2019-10-01T15:01:00Z`.
pub(super) fn is_iso_8601(value: &str) -> bool {
    value.split('~').any(|part| {
        let Some((date, time)) = part.trim().split_once('T') else { return false };
        let is_date = date.len() >= 8 && date.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        let is_time = time.starts_with(|c: char| c.is_ascii_digit());
        is_date && is_time && (time.ends_with('Z') || time.contains(['+', '-']))
    })
}

/// The date at the start of a text, and the text after it.
fn date(text: &str) -> Option<(Moment, &str)> {
    let (first, rest) = number(text, 4)?;
    let is_year = text.len() - rest.len() == 4;
    if let Some((month, rest)) = number_after(rest, '年').filter(|_| is_year) {
        let rest = rest.strip_prefix('月')?;
        let day = number(rest, 2).and_then(|(day, rest)| Some((day, rest.strip_prefix('日')?)));
        let (day, rest) = day.unwrap_or((1, rest));
        return Some((on(Some(first), month, day), rest));
    }
    if let Some((day, rest)) = number_after(rest, '月').filter(|_| !is_year) {
        return Some((on(None, first, day), rest.strip_prefix('日')?));
    }
    let separator = rest.chars().next().filter(|c| matches!(c, '-' | '/' | '.'))?;
    let (second, rest) = number_after(rest, separator)?;
    match number_after(rest, separator) {
        Some((day, rest)) => is_year.then(|| (on(Some(first), second, day), rest)),
        None if is_year => Some((on(Some(first), second, 1), rest)),
        // Two short numbers may be something else than a month and a day.
        None => Some((on(None, first, second), rest)).filter(|(moment, _)| !moment.impossible),
    }
}

/// A day, in a leap year if the year is not known.
fn on(year: Option<u32>, month: u32, day: u32) -> Moment {
    let is_leap = |year: u32| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 if year.is_none_or(is_leap) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let impossible = !(1..=12).contains(&month) || !(1..=31).contains(&day);
    Moment { date: true, time: false, exists: !impossible && day <= days, impossible }
}

fn time(text: &str) -> Option<Moment> {
    let two_digits = |text| number_after(text, ':').filter(|(_, rest): &(u32, &str)| text.len() - rest.len() == 3);
    let (hour, rest) = number(text, 2)?;
    let (minute, rest) = two_digits(rest)?;
    let (second, rest) = if rest.is_empty() { (0, rest) } else { two_digits(rest)? };
    let impossible = hour > 24 || minute > 59 || second > 59;
    rest.is_empty().then_some(Moment { date: false, time: true, exists: !impossible && hour < 24, impossible })
}

fn number_after(text: &str, separator: char) -> Option<(u32, &str)> {
    number(text.strip_prefix(separator)?, 2)
}

/// The number at the start of a text, of at most so many digits, and the text after it.
fn number(text: &str, most: usize) -> Option<(u32, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    if digits <= most { Some((number.parse().ok()?, rest)) } else { None }
}
