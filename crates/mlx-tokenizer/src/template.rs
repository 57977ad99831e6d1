//! Renders chat templates in an environment like that of transformers.

use jiff::Zoned;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::TokenizerError;
use crate::jinja::{self, ErrorKind};
use crate::json::Data;

/// The maximum length of a formatted time, in bytes.
const LONGEST_TIME: usize = 1 << 20;

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The input of a template.
pub(crate) struct Context {
    pub(crate) variables: Vec<(String, Data)>,
    /// The approximate size of the user's input, in bytes. Limits grow with it.
    pub(crate) given: usize,
    /// The local time; the default is the system's clock.
    pub(crate) now: Option<DateTime>,
}

/// Renders a template; errors refer to it as `name`.
pub(crate) fn render(name: &str, source: &str, context: Context) -> Result<String, TokenizerError> {
    let Context { variables, given, now } = context;
    let make = move || {
        let pair = |(name, value): &(String, Data)| Ok((name.as_str().into(), value.to_value()?));
        variables.iter().map(pair).collect()
    };
    let clock = |format: &str| strftime(format, now.unwrap_or_else(|| Zoned::now().datetime()));
    jinja::render(source, given, make, &clock).map_err(|error| {
        let (template, line) = (name.to_owned(), error.line);
        match error.kind {
            ErrorKind::Raised => TokenizerError::ChatRefused { template, line, message: error.message },
            ErrorKind::Syntax => {
                let problem = format!("syntax error: {}", error.message);
                TokenizerError::ChatTemplate { template, line, problem }
            }
            ErrorKind::Runtime | ErrorKind::Limit => {
                TokenizerError::ChatTemplate { template, line, problem: error.message }
            }
        }
    })
}

/// Formats a time as Python's `strftime` does on Linux, in the C locale and for a time without a zone.
///
/// A conversion is a `%`, then flags (`_`, `-`, `0`, `^`, `#`), a width, `E` or `O`, and a letter; all but the
/// `%` and the letter are optional. Unknown conversions stay as they are.
fn strftime(format: &str, now: DateTime) -> Result<String, String> {
    let count = format.chars().count();
    let mut out = String::new();
    let mut rest = format;
    while let Some((text, conversion)) = rest.split_once('%') {
        out += text;
        let (conversion, behind) = Conversion::parse(conversion);
        rest = behind;
        // Python gives its C library this much space. If the text does not fit, the result is empty.
        let room = (256 * count).next_power_of_two().max(1024);
        if conversion.width >= room {
            return Ok(String::new());
        }
        if out.len() + conversion.width > LONGEST_TIME {
            return Err(format!("the formatted time has more than {LONGEST_TIME} bytes"));
        }
        conversion.write(now, &mut out);
    }
    Ok(out + rest)
}

/// A conversion in a format.
struct Conversion<'a> {
    /// The whole conversion, without the `%`.
    text: &'a str,
    pad: Option<char>,
    upper: bool,
    swap: bool,
    width: usize,
    modifier: Option<char>,
    letter: Option<char>,
}

impl<'a> Conversion<'a> {
    /// Parses a conversion at the beginning. Returns it and the rest of the format.
    fn parse(text: &'a str) -> (Self, &'a str) {
        let (mut pad, mut upper, mut swap, mut width) = (None, false, false, 0_usize);
        let mut rest = text;
        while let Some(flag) = rest.chars().next().filter(|flag| "_-0^#".contains(*flag)) {
            match flag {
                '^' => upper = true,
                '#' => swap = true,
                flag => pad = Some(flag),
            }
            rest = &rest[1..];
        }
        while let Some(digit) = rest.chars().next().and_then(|digit| digit.to_digit(10)) {
            width = width.saturating_mul(10).saturating_add(digit as usize);
            rest = &rest[1..];
        }
        let modifier = rest.chars().next().filter(|c| "EO".contains(*c));
        rest = &rest[modifier.map_or(0, char::len_utf8)..];
        let letter = rest.chars().next();
        rest = &rest[letter.map_or(0, char::len_utf8)..];
        (Self { text: &text[..text.len() - rest.len()], pad, upper, swap, width, modifier, letter }, rest)
    }

    #[allow(clippy::too_many_lines, reason = "a table of the conversions")]
    fn write(&self, now: DateTime, out: &mut String) {
        let mut upper = self.upper;
        let hour = match now.hour() % 12 {
            0 => 12,
            hour => hour,
        };
        let day = i64::from(now.day_of_year());
        let (sunday, monday) = (
            i64::from(now.weekday().to_sunday_zero_offset()),
            i64::from(now.weekday().to_monday_zero_offset()),
        );
        let week = now.date().iso_week_date();
        let year = i64::from(now.year());
        let weekday = WEEKDAYS[now.weekday().to_sunday_zero_offset().unsigned_abs() as usize];
        let month = MONTHS[now.month().unsigned_abs() as usize - 1];
        let parts = |format: &str| strftime(format, now).unwrap_or_default();
        let number = |digits: usize, value: i64| self.number(digits, '0', value);
        let spaced = |value: i8| self.number(2, '_', value.into());
        let pm = if now.hour() < 12 { "am" } else { "pm" };
        let known = match self.modifier {
            Some('E') => "cnprstuxyzCPRTXYZ%",
            Some(_) => "bdeghjklmnprstuwyzBCGHIMPRSTUVWZ%",
            None => "",
        };
        let letter =
            self.letter.filter(|letter| self.modifier.is_none() || known.contains(*letter)).unwrap_or('\0');
        let text = match letter {
            'a' => weekday[..3].to_owned(),
            'A' => weekday.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'B' => month.to_owned(),
            'c' => parts("%a %b %e %H:%M:%S %Y"),
            'D' | 'x' => parts("%m/%d/%y"),
            'F' => parts("%Y-%m-%d"),
            'r' => parts("%I:%M:%S %p"),
            'R' => parts("%H:%M"),
            'T' | 'X' => parts("%H:%M:%S"),
            'C' => number(1, year.div_euclid(100)),
            'd' => number(2, now.day().into()),
            'e' => spaced(now.day()),
            // Python handles this conversion itself.
            'f' if self.text == "f" => format!("{:06}", now.subsec_nanosecond() / 1000),
            'g' => number(2, i64::from(week.year()).rem_euclid(100)),
            'G' => number(1, week.year().into()),
            'H' => number(2, now.hour().into()),
            'I' => number(2, hour.into()),
            'j' => number(3, day),
            'k' => spaced(now.hour()),
            'l' => spaced(hour),
            'm' => number(2, now.month().into()),
            'M' => number(2, now.minute().into()),
            'n' => "\n".to_owned(),
            'p' if !self.swap => pm.to_uppercase(),
            'p' | 'P' => {
                upper = false;
                pm.to_owned()
            }
            's' => {
                let zoned = now.to_zoned(TimeZone::system());
                zoned.map(|now| now.timestamp().as_second().to_string()).unwrap_or_default()
            }
            'S' => number(2, now.second().into()),
            't' => "\t".to_owned(),
            'u' => number(1, monday + 1),
            'U' => number(2, (day + 6 - sunday) / 7),
            'V' => number(2, week.week().into()),
            'w' => number(1, sunday),
            'W' => number(2, (day + 6 - monday) / 7),
            'y' => number(2, year.rem_euclid(100)),
            'Y' => number(1, year),
            // The time has no zone.
            'z' => return,
            'Z' => String::new(),
            '%' => "%".to_owned(),
            _ => format!("%{}", self.text),
        };
        let upper = upper || self.swap && matches!(letter, 'a' | 'A' | 'b' | 'B' | 'h');
        let filling = if self.pad == Some('0') { "0" } else { " " };
        *out += &filling.repeat(self.width.saturating_sub(text.chars().count()));
        for c in text.chars() {
            // The C library's upper case never has two characters.
            let mut cases = c.to_uppercase();
            out.push(cases.next().filter(|_| upper && cases.len() == 0).unwrap_or(c));
        }
    }

    /// A number with this many digits, or as many as the width says.
    fn number(&self, digits: usize, pad: char, value: i64) -> String {
        let digits = digits.max(self.width);
        match self.pad.unwrap_or(pad) {
            '-' => value.to_string(),
            '_' => format!("{value:digits$}"),
            _ => format!("{value:0digits$}"),
        }
    }
}
