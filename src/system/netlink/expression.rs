//! Rules as libnftnl writes them: the only place that calls into C to build a message.
//!
//! nftnl's own expressions always use the first register and lack most of what is needed here, so one generic expression is
//! set up by name and `NFTNL_EXPR_*` attribute. Not a check of meaning: the kernel judges that.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_void};
use std::ptr::NonNull;

use nftnl::expr::Expression;
use nftnl::nftnl_sys as sys;
use nftnl::{MsgType, NlMsg, Rule};

use super::uapi::*;
use crate::ruleset::program::{Expr, Register, Verdict};

/// More expressions than this are refused. The kernel takes 128; each encodes to less than 640 octets (names up to 256, data up
/// to twice 64), so this many stay below the 64 KiB that libnftnl has room for.
const MAX_EXPRESSIONS: usize = 100;

/// Where libnftnl writes one message: as large as the largest, aligned for a netlink header.
pub struct Scratch {
    room: Vec<u8>,
    offset: usize,
}

impl Scratch {
    /// Makes the room.
    pub fn new() -> Scratch {
        let room = vec![0; nftnl::nft_nlmsg_maxsize() as usize + 16];
        let offset = room.as_ptr().align_offset(16);
        Scratch { room, offset }
    }

    /// Has one object written as a message and answers with its octets.
    pub fn write(&mut self, object: &impl NlMsg, seq: u32, kind: MsgType) -> &[u8] {
        let buffer = &mut self.room[self.offset..];
        // SAFETY: the buffer has `nft_nlmsg_maxsize` octets or more, which is what `NlMsg::write` asks for; tables and chains are a
        // few hundred octets, and rules were bounded by `MAX_EXPRESSIONS`.
        unsafe { object.write(buffer.as_mut_ptr().cast::<c_void>(), seq, kind) };
        let length = u32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
        &buffer[..length]
    }
}

/// Appends expressions to a rule; the error is the name of an errno, with words where they help.
pub fn add_expressions(rule: &mut Rule<'_>, exprs: &[Expr]) -> Result<(), String> {
    if exprs.len() > MAX_EXPRESSIONS {
        return Err("E2BIG".into());
    }
    for expr in exprs {
        rule.add_expr(&generic(expr)?);
    }
    Ok(())
}

/// One expression of libnftnl, owned until a rule or another expression takes it.
struct Generic(Cell<Option<NonNull<sys::nftnl_expr>>>);

impl Generic {
    fn new(name: &'static CStr) -> Result<Generic, String> {
        // SAFETY: the name is a NUL-terminated string; libnftnl answers NULL for a name it does not know.
        let raw = unsafe { sys::nftnl_expr_alloc(name.as_ptr()) };
        match NonNull::new(raw) {
            Some(expr) => Ok(Generic(Cell::new(Some(expr)))),
            None => Err(format!("EOPNOTSUPP: this libnftnl has no `{}`", name.to_string_lossy())),
        }
    }

    /// Sets an attribute from octets in the shape that libnftnl has for it.
    fn set(self, attribute: u32, value: &[u8]) -> Result<Generic, String> {
        let Some(expr) = self.0.get() else { return Err("EINVAL".into()) };
        // SAFETY: `expr` is alive because it is still ours. libnftnl copies `value.len()` octets at most 64 into the attribute's own
        // room: every caller passes either a number of the attribute's own width or data that `data` has bounded.
        let result = unsafe { sys::nftnl_expr_set(expr.as_ptr(), attribute as u16, value.as_ptr().cast::<c_void>(), value.len() as u32) };
        if result < 0 { Err("EINVAL".into()) } else { Ok(self) }
    }

    fn u8(self, attribute: u32, number: u8) -> Result<Generic, String> {
        self.set(attribute, &[number])
    }

    fn u16(self, attribute: u32, number: u16) -> Result<Generic, String> {
        self.set(attribute, &number.to_ne_bytes())
    }

    fn u32(self, attribute: u32, number: u32) -> Result<Generic, String> {
        self.set(attribute, &number.to_ne_bytes())
    }

    fn u64(self, attribute: u32, number: u64) -> Result<Generic, String> {
        self.set(attribute, &number.to_ne_bytes())
    }

    fn register(self, attribute: u32, register: Register) -> Result<Generic, String> {
        self.u32(attribute, register.to_wire())
    }

    /// Data for a register: 1 to 64 octets, all that libnftnl has room for.
    fn data(self, attribute: u32, data: &[u8]) -> Result<Generic, String> {
        if data.is_empty() || data.len() > NFT_DATA_VALUE_MAXLEN {
            return Err("EINVAL: a datum has 1 to 64 octets".into());
        }
        self.set(attribute, data)
    }

    /// A text, which libnftnl copies up to its NUL.
    fn text(self, attribute: u32, text: &str) -> Result<Generic, String> {
        let text = name(text)?;
        self.set(attribute, text.as_bytes_with_nul())
    }

    /// Puts an expression inside another.
    fn containing(self, attribute: u32, inner: Generic) -> Result<Generic, String> {
        let (Some(outer), Some(taken)) = (self.0.get(), inner.0.take()) else { return Err("EINVAL".into()) };
        // SAFETY: both are alive and ours; from here on the outer one owns the inner one, which was just taken out of its owner.
        unsafe { sys::nftnl_expr_add_expr(outer.as_ptr(), attribute, taken.as_ptr()) };
        Ok(self)
    }
}

impl Expression for Generic {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        // INVARIANT: `add_expressions` is the only caller, and hands every expression to one rule once.
        self.0.take().expect("an expression goes into one rule only")
    }
}

impl Drop for Generic {
    fn drop(&mut self) {
        if let Some(expr) = self.0.take() {
            // SAFETY: nobody took it, so it is still ours to free.
            unsafe { sys::nftnl_expr_free(expr.as_ptr()) };
        }
    }
}

/// A name that the kernel can hold.
pub fn name(text: &str) -> Result<CString, String> {
    if text.len() > NFT_NAME_LENGTH {
        return Err("ENAMETOOLONG".into());
    }
    CString::new(text).map_err(|_| "EINVAL: a name holds a NUL".into())
}

fn generic(expr: &Expr) -> Result<Generic, String> {
    match expr {
        Expr::Meta { key, into } => {
            Generic::new(c"meta")?.u32(sys::NFTNL_EXPR_META_KEY, *key)?.register(sys::NFTNL_EXPR_META_DREG, *into)
        }
        Expr::Ct { key, direction, into } => {
            let loaded = Generic::new(c"ct")?.u32(sys::NFTNL_EXPR_CT_KEY, *key)?.register(sys::NFTNL_EXPR_CT_DREG, *into)?;
            match direction {
                Some(direction) => loaded.u8(sys::NFTNL_EXPR_CT_DIR, *direction),
                None => Ok(loaded),
            }
        }
        Expr::Payload { base, offset, len, into } => Generic::new(c"payload")?
            .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, *base)?
            .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, *offset)?
            .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, *len)?
            .register(sys::NFTNL_EXPR_PAYLOAD_DREG, *into),
        Expr::SocketCgroup { level, into } => Generic::new(c"socket")?
            .u32(sys::NFTNL_EXPR_SOCKET_KEY, NFT_SOCKET_CGROUPV2)?
            .u32(sys::NFTNL_EXPR_SOCKET_LEVEL, *level)?
            .register(sys::NFTNL_EXPR_SOCKET_DREG, *into),
        Expr::Bitwise { from, into, mask, xor } => Generic::new(c"bitwise")?
            .register(sys::NFTNL_EXPR_BITWISE_SREG, *from)?
            .register(sys::NFTNL_EXPR_BITWISE_DREG, *into)?
            .u32(sys::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32)?
            .data(sys::NFTNL_EXPR_BITWISE_MASK, mask)?
            .data(sys::NFTNL_EXPR_BITWISE_XOR, xor),
        Expr::Compare { how, from, data } => Generic::new(c"cmp")?
            .register(sys::NFTNL_EXPR_CMP_SREG, *from)?
            .u32(sys::NFTNL_EXPR_CMP_OP, *how as u32)?
            .data(sys::NFTNL_EXPR_CMP_DATA, data),
        Expr::Range { inverted, from, low, high } => Generic::new(c"range")?
            .register(sys::NFTNL_EXPR_RANGE_SREG, *from)?
            .u32(sys::NFTNL_EXPR_RANGE_OP, u32::from(*inverted))?
            .data(sys::NFTNL_EXPR_RANGE_FROM_DATA, low)?
            .data(sys::NFTNL_EXPR_RANGE_TO_DATA, high),
        Expr::Lookup { set, from, inverted } => Generic::new(c"lookup")?
            .text(sys::NFTNL_EXPR_LOOKUP_SET, set)?
            .register(sys::NFTNL_EXPR_LOOKUP_SREG, *from)?
            .u32(sys::NFTNL_EXPR_LOOKUP_FLAGS, u32::from(*inverted)),
        Expr::Update { set, operation, from, timeout_ms, element } => update(set, *operation, *from, *timeout_ms, element),
        Expr::Counter => Generic::new(c"counter"),
        Expr::Limit { rate, unit, burst, kind, over } => Generic::new(c"limit")?
            .u64(sys::NFTNL_EXPR_LIMIT_RATE, *rate)?
            .u64(sys::NFTNL_EXPR_LIMIT_UNIT, *unit)?
            .u32(sys::NFTNL_EXPR_LIMIT_BURST, *burst)?
            .u32(sys::NFTNL_EXPR_LIMIT_TYPE, *kind)?
            .u32(sys::NFTNL_EXPR_LIMIT_FLAGS, u32::from(*over)),
        Expr::Log { prefix, group, snaplen, threshold } => log(prefix, *group, *snaplen, *threshold),
        Expr::Verdict(verdict) => immediate(verdict),
        Expr::Reject { kind, code } => {
            let reject = Generic::new(c"reject")?.u32(sys::NFTNL_EXPR_REJECT_TYPE, *kind)?;
            if *kind == NFT_REJECT_TCP_RST { Ok(reject) } else { reject.u8(sys::NFTNL_EXPR_REJECT_CODE, *code) }
        }
        Expr::Foreign(name) => Err(format!("EOPNOTSUPP: `{name}` is not one of our expressions")),
    }
}

fn update(set: &str, operation: u32, from: Register, timeout_ms: u64, element: &[Expr]) -> Result<Generic, String> {
    // The kernel's NFT_SET_EXPR_MAX.
    if element.len() > 2 {
        return Err("E2BIG".into());
    }
    let mut dynset = Generic::new(c"dynset")?
        .u32(sys::NFTNL_EXPR_DYNSET_OP, operation)?
        .register(sys::NFTNL_EXPR_DYNSET_SREG_KEY, from)?
        .text(sys::NFTNL_EXPR_DYNSET_SET_NAME, set)?;
    if timeout_ms > 0 {
        dynset = dynset.u64(sys::NFTNL_EXPR_DYNSET_TIMEOUT, timeout_ms)?;
    }
    for inner in element {
        dynset = match inner {
            Expr::Counter | Expr::Limit { .. } => dynset.containing(sys::NFTNL_EXPR_DYNSET_EXPRESSIONS, generic(inner)?)?,
            _ => return Err("EOPNOTSUPP: an element carries counters and limits only".into()),
        };
    }
    if element.len() > 1 { dynset.u32(sys::NFTNL_EXPR_DYNSET_FLAGS, NFT_DYNSET_F_EXPR) } else { Ok(dynset) }
}

fn log(prefix: &str, group: u16, snaplen: u32, threshold: u16) -> Result<Generic, String> {
    let mut log = Generic::new(c"log")?.u16(sys::NFTNL_EXPR_LOG_GROUP, group)?;
    if !prefix.is_empty() {
        log = log.text(sys::NFTNL_EXPR_LOG_PREFIX, prefix)?;
    }
    if snaplen > 0 {
        log = log.u32(sys::NFTNL_EXPR_LOG_SNAPLEN, snaplen)?;
    }
    if threshold > 0 { log.u16(sys::NFTNL_EXPR_LOG_QTHRESHOLD, threshold) } else { Ok(log) }
}

fn immediate(verdict: &Verdict) -> Result<Generic, String> {
    // NFT_REG_VERDICT is 0.
    let immediate = Generic::new(c"immediate")?.u32(sys::NFTNL_EXPR_IMM_DREG, 0)?;
    let (code, chain) = match verdict {
        Verdict::Accept => (NF_ACCEPT, None),
        Verdict::Drop => (NF_DROP, None),
        Verdict::Continue => (NFT_CONTINUE, None),
        Verdict::Return => (NFT_RETURN, None),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
    };
    let immediate = immediate.set(sys::NFTNL_EXPR_IMM_VERDICT, &code.to_ne_bytes())?;
    match chain {
        Some(chain) => immediate.text(sys::NFTNL_EXPR_IMM_CHAIN, chain),
        None => Ok(immediate),
    }
}
