//! `egressguard demo`: the whole story in throw-away namespaces, with a small internet inside.
//!
//! The firewall is real: the program itself is run as an operator would run it, and the attempts are made with real sockets. What is
//! thrown away is the machine around it: two network namespaces, joined by a cable, and a directory in memory.
//!
//! INVARIANT: nothing is ever loaded into the network namespace that the demo was started in. [`run`] leaves it before anything
//! else happens, and looks again before each run of the program.

pub mod attempt;
mod cable;
pub mod internet;
pub mod namespace;
pub mod page;
mod program;
mod scene;
mod table;

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;

use crate::demo::namespace::{Entry, Identity, Missing, Namespace};
pub use crate::demo::page::Colour;
use crate::demo::page::{Page, Tone};
use crate::demo::program::{Ended, Program};
use crate::demo::scene::{API, API_AT_FIRST, API_LATER, Families, RESOLVER, SERVER, Scene, families};
use crate::demo::table::Tally;

/// How the demo is run.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// The program that applies the policy: this one, `std::env::current_exe()`.
    pub program: PathBuf,
    /// When colour is used.
    pub colour: Colour,
}

/// Tells the story on standard output and answers with the exit code: 0 when everything went as it should, 1 when an attempt ended
/// otherwise or the program failed, 3 when this machine lacks something, which is then said on standard error with the next step.
///
/// To be called while the process has one thread; the process is in other namespaces afterwards and should end. Fails when
/// standard output does, or something that no advice is known for.
pub fn run(options: DemoOptions) -> anyhow::Result<u8> {
    let mut out = io::stdout().lock();
    let mut page = Page::new(&mut out, options.colour);
    match story(&mut page, &options) {
        Ok(code) => Ok(code),
        Err(error) => {
            page.clear()?;
            let missing = error.downcast::<Missing>()?;
            eprintln!("error: the demo cannot be shown here: {}\nhelp: {}", missing.what, missing.help);
            Ok(3)
        }
    }
}

fn story(page: &mut Page, options: &DemoOptions) -> anyhow::Result<u8> {
    let begin = Instant::now();
    let start = Namespace::current().and_then(|namespace| namespace.identity()).context("cannot look at /proc/thread-self/ns/net")?;
    let path = options.program.canonicalize().with_context(|| format!("cannot find `{}`", options.program.display()))?;

    page.line(Tone::Heading, "egressguard demo: a server, a firewall and a small internet, all inside this process")?;
    page.doing("making two network namespaces")?;
    let entry = namespace::enter()?;
    let directory = namespace::private_directory(&path)?;
    let here = elsewhere(start)?;
    let scene = Scene::build(families())?;
    let program = Program::new(&path, &directory, &RESOLVER.addresses(families()))?;
    introduce(page, entry, start, here)?;

    page.doing("making every attempt while nothing is forbidden")?;
    let rows = scene.attempts();
    let before = scene.attempt_all(&rows)?;

    page.heading("2. The built-in default policy is applied: one port in, the API's name out, nothing else")?;
    if let Some(code) = operate(page, &program, start, &["apply", "builtin:openai"], 14)? {
        return Ok(code);
    }

    page.heading("3. The same attempts, before and after. Everybody out there is listening and would answer")?;
    page.doing("making every attempt again")?;
    let after = scene.attempt_all(&rows)?;
    let first = table::write(page, ["before", "after"], &rows, &before, &after)?;
    page.text(&[
        "",
        "   What leaves the server is refused at once, so that a program fails with a reason (an errno above)",
        "   instead of hanging; what knocks from outside is dropped without a word (`no answer`).",
    ])?;

    page.heading("4. The API moves to other addresses, as services behind a content network do")?;
    page.text(&[
        &format!("   DNS says from now on: {API} is {} and no longer {}.", API_LATER.v4(), API_AT_FIRST.v4()),
        "   Until somebody asks, the new address is closed. A timer asks every minute; here it is asked now:",
    ])?;
    scene.rotate_to(API_LATER);
    let rows = scene.attempts_around_the_refresh();
    let before = scene.attempt_all(&rows)?;
    if let Some(code) = operate(page, &program, start, &["refresh"], 10)? {
        return Ok(code);
    }
    page.line(Tone::Plain, "")?;
    page.doing("making the attempts again")?;
    let after = scene.attempt_all(&rows)?;
    let second = table::write(page, ["before", "after"], &rows, &before, &after)?;
    page.text(&[
        "",
        "   The old address is draining: requests that are under way may finish, and it is closed when no",
        "   answer has named it for as long as `refresh.keep` says (24h).",
    ])?;
    if let Some(code) = operate(page, &program, start, &["status"], 16)? {
        return Ok(code);
    }

    page.heading("5. Nothing stays behind")?;
    page.text(&[
        &format!("   The firewall lived in {here}, which ends with this process; its files lived in memory."),
        &format!("   You are in {start}, as before. No rule was ever loaded there."),
    ])?;
    elsewhere(start)?;
    conclude(page, [first, second], begin)
}

/// Makes sure that this is not the namespace of the start, and says which one it is.
fn elsewhere(start: Identity) -> anyhow::Result<Identity> {
    let here = Namespace::current()?.identity()?;
    anyhow::ensure!(here != start, "the demo is still in the network namespace it was started in ({start}) and stops here");
    Ok(here)
}

/// Runs the program and shows what it says. Answers with an exit code when the story ends here.
fn operate(page: &mut Page, program: &Program, start: Identity, arguments: &[&str], lines: usize) -> anyhow::Result<Option<u8>> {
    elsewhere(start)?;
    page.line(Tone::Plain, &format!("   $ egressguard {}", arguments.join(" ")))?;
    page.doing("waiting for it")?;
    let Ended { code, said } = program.run(arguments)?;
    if code == Some(0) {
        page.quote(&said, lines)?;
        return Ok(None);
    }
    page.quote(&said, usize::MAX)?;
    let ending = code.map_or("was ended by a signal".to_string(), |code| format!("ended with exit code {code}"));
    page.line(Tone::Bad, &format!("   it {ending}, so the story ends here; your own network was not touched"))?;
    Ok(Some(if code == Some(3) { 3 } else { 1 }))
}

fn introduce(page: &mut Page, entry: Entry, start: Identity, here: Identity) -> io::Result<()> {
    page.heading("1. A server and a small internet, apart from yours")?;
    let how = match entry {
        Entry::Root => "as root",
        Entry::UserNamespace => "without root, in a user namespace",
    };
    page.text(&[
        &format!("   server    {}  {}  in {here}, {how}", SERVER.v4(), SERVER.v6()),
        &format!("   internet  a resolver at {}, {API} at {}, and a stranger", RESOLVER.v4(), API_AT_FIRST.v4()),
        &format!("   you       in {start}, with which there is no connection"),
    ])?;
    if families() == Families::V4Only {
        page.line(Tone::Bad, "   this kernel has IPv6 switched off: the IPv6 half of the story is left out")?;
    }
    Ok(())
}

fn conclude(page: &mut Page, tallies: [Tally; 2], begin: Instant) -> anyhow::Result<u8> {
    let sum = |part: fn(&Tally) -> usize| tallies.iter().map(part).sum::<usize>();
    let (allowed, refused, surprises) = (sum(|t| t.allowed), sum(|t| t.refused), sum(|t| t.surprises));
    let all = allowed + refused + surprises;
    let seconds = begin.elapsed().as_secs_f64();
    page.line(Tone::Plain, "")?;
    if surprises > 0 {
        page.line(
            Tone::Bad,
            &format!("{surprises} of {all} attempts did NOT end as the policy says: see the lines marked !! above ({seconds:.1} s)"),
        )?;
        return Ok(1);
    }
    page.line(Tone::Good, &format!("{all} attempts, {allowed} allowed and {refused} refused, each as the policy says ({seconds:.1} s)"))?;
    page.heading("What next, on a machine of yours")?;
    page.text(&[
        "   sudo scripts/install                             the program, its units and a first policy",
        "   egressguard check /etc/egressguard/policy.yaml   is it right? changes nothing, needs no root",
        "   sudo egressguard apply --dry-run                 what would be loaded? changes nothing",
        "   sudo egressguard apply                           hold it",
    ])?;
    Ok(0)
}
