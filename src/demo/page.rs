//! How the demo looks: headings, aligned tables of at most 100 columns, a line of progress on a terminal.

use std::io::{self, IsTerminal, Write};

/// When colour is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Colour {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How a line is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// A heading.
    Heading,
    /// As expected.
    Good,
    /// Not as expected.
    Bad,
    /// Beside the point.
    Quiet,
    /// Ordinary.
    Plain,
}

/// The widest line.
pub const WIDTH: usize = 100;

/// The page being written.
pub struct Page<'a> {
    out: &'a mut dyn Write,
    coloured: bool,
    progress: Progress,
}

/// Whether somebody watches the line of progress, and whether there is one to be wiped out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Nobody,
    Clean,
    Shown,
}

impl<'a> Page<'a> {
    /// A page on standard output.
    pub fn new(out: &'a mut dyn Write, colour: Colour) -> Page<'a> {
        let coloured = match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        };
        let progress = if io::stderr().is_terminal() { Progress::Clean } else { Progress::Nobody };
        Page { out, coloured, progress }
    }

    /// Writes one line.
    pub fn line(&mut self, tone: Tone, text: &str) -> io::Result<()> {
        self.wipe()?;
        let text = text.trim_end();
        let code = match tone {
            Tone::Heading => "1",
            Tone::Good => "32",
            Tone::Bad => "1;31",
            Tone::Quiet => "2",
            Tone::Plain => "",
        };
        if self.coloured && !code.is_empty() && !text.is_empty() {
            writeln!(self.out, "\x1b[{code}m{text}\x1b[0m")?;
        } else {
            writeln!(self.out, "{text}")?;
        }
        self.out.flush()
    }

    /// Writes a heading with an empty line above it.
    pub fn heading(&mut self, text: &str) -> io::Result<()> {
        self.line(Tone::Plain, "")?;
        self.line(Tone::Heading, text)
    }

    /// Writes ordinary text, one line per element.
    pub fn text(&mut self, lines: &[&str]) -> io::Result<()> {
        lines.iter().try_for_each(|line| self.line(Tone::Plain, line))
    }

    /// Writes what another program said, set off from our own words and cut to the width of the page.
    pub fn quote(&mut self, text: &str, most: usize) -> io::Result<()> {
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().take(most) {
            let cut: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WIDTH - 5).collect();
            self.line(Tone::Quiet, &format!("   | {cut}"))?;
        }
        if lines.len() > most {
            self.line(Tone::Quiet, &format!("   | ... and {} more lines", lines.len() - most))?;
        }
        Ok(())
    }

    /// Shows what is being done, to somebody who watches; the next line takes its place.
    pub fn doing(&mut self, what: &str) -> io::Result<()> {
        if self.progress == Progress::Nobody {
            return Ok(());
        }
        let mut screen = io::stderr().lock();
        write!(screen, "\r\x1b[K   {what} ...")?;
        screen.flush()?;
        self.progress = Progress::Shown;
        Ok(())
    }

    /// Takes the line of progress away.
    pub fn clear(&mut self) -> io::Result<()> {
        self.wipe()
    }

    fn wipe(&mut self) -> io::Result<()> {
        if self.progress == Progress::Shown {
            let mut screen = io::stderr().lock();
            write!(screen, "\r\x1b[K")?;
            screen.flush()?;
            self.progress = Progress::Clean;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(colour: Colour, write: impl FnOnce(&mut Page)) -> String {
        let mut out = Vec::new();
        write(&mut Page::new(&mut out, colour));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn colour_is_only_what_was_asked_for() {
        let plain = written(Colour::Never, |page| page.line(Tone::Bad, "no").unwrap());
        let coloured = written(Colour::Always, |page| page.line(Tone::Bad, "no").unwrap());
        assert_eq!(plain, "no\n");
        assert_eq!(coloured, "\x1b[1;31mno\x1b[0m\n");
    }

    #[test]
    fn what_another_program_said_can_neither_leave_the_page_nor_steer_the_terminal() {
        let text = format!("{}\n\x1b[2Jb\nc\nd\n", "x".repeat(300));
        let quoted = written(Colour::Never, |page| page.quote(&text, 3).unwrap());
        assert!(quoted.lines().all(|line| line.chars().count() <= WIDTH && !line.contains('\x1b')), "{quoted}");
        assert!(quoted.ends_with("... and 1 more lines\n"), "{quoted}");
    }
}
