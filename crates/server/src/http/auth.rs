//! Sign-in and sessions, in memory only: a restart signs everybody out and loses nothing else.
//!
//! Always holds: a challenge is good once, for [`CHALLENGE_LIFE_MS`], on this server's present run; only the hash of a
//! session's token is kept; everything kept is bounded. A challenge needs no memory (it carries its own proof), so
//! asking for many of them costs the server nothing and shuts nobody out. Time and randomness are arguments.
//! Not here: the secrets of API keys, whose hashes are in the state.

use std::collections::BTreeMap;

use ionet_api::Secret;
use ionet_api::rest::{Challenge, Session, SignInRequest};
use ionet_api::sign::{self, SignIn, hex};
use ionet_domain::{Address, KeyId};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::error::Error;

/// How long a challenge can be signed.
pub(crate) const CHALLENGE_LIFE_MS: u64 = 2 * 60_000;
/// How long a session lasts.
pub(crate) const SESSION_LIFE_MS: u64 = 12 * 3_600_000;
/// Sign-ins of one account within a challenge's life, and its sessions at a time.
const ACCOUNT_MOST: usize = 16;
/// Sign-ins within a challenge's life and sessions at a time, of all accounts.
const ALL_MOST: usize = 100_000;
const SESSION_PREFIX: &str = "session_";
const KEY_PREFIX: &str = "ionet_";

/// 32 bytes that nobody else can guess.
pub(crate) type Random = [u8; 32];
type Sha = [u8; 32];

/// SHA-256 of a text.
pub(crate) fn sha256(text: &str) -> Sha {
    Sha256::digest(text.as_bytes()).into()
}

/// Compares without telling by its time how much is alike.
pub(crate) fn same(one: &[u8], other: &[u8]) -> bool {
    one.ct_eq(other).into()
}

/// An API key's bearer token.
pub(crate) fn key_token(key: KeyId, secret: &Random) -> (Secret, String) {
    let secret = hex(secret);
    let token = Secret::new(format!("{KEY_PREFIX}{key}_{secret}"));
    (token, hex(&sha256(&secret)))
}

/// What a bearer token claims to be.
pub(crate) enum Bearer<'a> {
    Session(&'a str),
    Key(KeyId, &'a str),
}

impl<'a> Bearer<'a> {
    /// Reads the value of an `Authorization` header.
    pub(crate) fn read(header: &'a str) -> Option<Self> {
        let (scheme, token) = header.split_once(' ')?;
        let token = token.trim();
        if scheme.eq_ignore_ascii_case("bearer") { Self::of(token) } else { None }
    }

    /// Reads the token itself.
    pub(crate) fn of(token: &'a str) -> Option<Self> {
        if token.starts_with(SESSION_PREFIX) {
            return Some(Self::Session(token));
        }
        let (key, secret) = token.strip_prefix(KEY_PREFIX)?.rsplit_once('_')?;
        Some(Self::Key(key.parse().ok()?, secret))
    }
}

/// All sessions, and the challenges already used.
pub(crate) struct Sessions {
    /// Proves that a challenge is one of ours; fresh at every start.
    own_secret: Random,
    used: BTreeMap<String, (Address, u64)>,
    open: BTreeMap<Sha, (Address, u64)>,
}

fn turned_away(code: &'static str, reason: &str) -> Error {
    Error::NotSignedIn { code, reason: reason.into() }
}

impl Sessions {
    pub(crate) fn new(own_secret: Random) -> Self {
        Self { own_secret, used: BTreeMap::new(), open: BTreeMap::new() }
    }

    /// A challenge for an account.
    pub(crate) fn challenge(&self, account: Address, random: &Random, now_ms: u64) -> Challenge {
        let expires_ms = now_ms + CHALLENGE_LIFE_MS;
        let salt = hex(&random[..16]);
        let proof = self.proof(account, &salt, expires_ms);
        Challenge { nonce: format!("{salt}{proof}"), expires_ms }
    }

    /// Two nested hashes, so that knowing one proof helps with no other. All parts have fixed lengths.
    fn proof(&self, account: Address, salt: &str, expires_ms: u64) -> String {
        let hash = |inner: &[u8]| Sha256::new().chain_update(self.own_secret).chain_update(inner).finalize();
        let said = [account.0.as_slice(), salt.as_bytes(), &expires_ms.to_le_bytes()].concat();
        hex(&hash(&hash(&said)))
    }

    /// Opens a session for a signed challenge.
    pub(crate) fn sign_in(
        &mut self,
        network: &str,
        request: &SignInRequest,
        random: &Random,
        now_ms: u64,
    ) -> Result<Session, Error> {
        self.check(network, request, now_ms)?;
        self.forget_old(now_ms);
        self.check_room(request.account)?;
        self.used.insert(request.nonce.clone(), (request.account, request.expires_ms));
        Ok(self.open_session(request.account, random, now_ms))
    }

    fn check(&self, network: &str, request: &SignInRequest, now_ms: u64) -> Result<(), Error> {
        let (salt, proof) = request.nonce.split_at_checked(32).unwrap_or_default();
        let ours = self.proof(request.account, salt, request.expires_ms);
        if !same(proof.as_bytes(), ours.as_bytes()) {
            return Err(turned_away("unknown_challenge", "the challenge was not made here for this account"));
        }
        if now_ms >= request.expires_ms {
            return Err(turned_away("challenge_expired", "the challenge is older than two minutes"));
        }
        let said =
            SignIn { account: request.account, nonce: request.nonce.clone(), expires_ms: request.expires_ms };
        sign::verify(request.account, network, &said, &request.signature)
            .map_err(|error| turned_away(error.code(), &error.to_string()))?;
        if self.used.contains_key(&request.nonce) {
            return Err(turned_away("challenge_used", "the challenge was used before"));
        }
        Ok(())
    }

    fn check_room(&self, account: Address) -> Result<(), Error> {
        let own = self.used.values().filter(|(whose, _)| *whose == account).take(ACCOUNT_MOST).count();
        if own >= ACCOUNT_MOST || self.used.len() >= ALL_MOST {
            return Err(Error::TooMany { what: "sign-ins", retry_s: 120 });
        }
        Ok(())
    }

    fn forget_old(&mut self, now_ms: u64) {
        self.used.retain(|_, (_, expires_ms)| *expires_ms > now_ms);
        self.open.retain(|_, (_, expires_ms)| *expires_ms > now_ms);
    }

    /// The account's oldest session makes room for a new one, and so does the oldest of all.
    fn open_session(&mut self, account: Address, random: &Random, now_ms: u64) -> Session {
        let own = self.open.iter().filter(|(_, (whose, _))| *whose == account);
        let own: Vec<_> = own.map(|(sha, (_, expires_ms))| (*expires_ms, *sha)).collect();
        let oldest = if own.len() >= ACCOUNT_MOST {
            own.into_iter().min()
        } else if self.open.len() >= ALL_MOST {
            self.open.iter().map(|(sha, (_, expires_ms))| (*expires_ms, *sha)).min()
        } else {
            None
        };
        if let Some((_, oldest)) = oldest {
            self.open.remove(&oldest);
        }
        let expires_ms = now_ms + SESSION_LIFE_MS;
        let token = format!("{SESSION_PREFIX}{}", hex(random));
        self.open.insert(sha256(&token), (account, expires_ms));
        Session { token: Secret::new(token), expires_ms }
    }

    /// Whose session a token is.
    pub(crate) fn account(&self, token: &str, now_ms: u64) -> Result<Address, Error> {
        match self.open.get(&sha256(token)) {
            Some((account, expires_ms)) if *expires_ms > now_ms => Ok(*account),
            Some(_) => Err(turned_away("session_expired", "the session is over")),
            None => {
                let reason =
                    "the session is unknown here (sessions end after 12 h and when the server restarts)";
                Err(turned_away("unknown_session", reason))
            }
        }
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ionet_api::WalletKey;

    fn signed(sessions: &Sessions, wallet: &WalletKey, random: u8, now_ms: u64) -> SignInRequest {
        let account = wallet.address();
        let Challenge { nonce, expires_ms } = sessions.challenge(account, &[random; 32], now_ms);
        let said = SignIn { account, nonce: nonce.clone(), expires_ms };
        SignInRequest { account, nonce, expires_ms, signature: wallet.sign("net", &said) }
    }

    fn code(answer: Result<Session, Error>) -> String {
        answer.map_or_else(|error| error.code().to_owned(), |_| "ok".into())
    }

    /// One line an attempt: what is presented when, and the answer's code.
    #[test]
    fn a_challenge_is_good_once_for_its_account_and_time() {
        let mut sessions = Sessions::new([1; 32]);
        let (wallet, other) = (WalletKey::from_seed(&[7; 32]), WalletKey::from_seed(&[8; 32]));
        let good = signed(&sessions, &wallet, 2, 1000);
        let later = SignInRequest { expires_ms: good.expires_ms + 1, ..good.clone() };
        let theirs = SignInRequest { account: other.address(), ..good.clone() };
        let garbled = SignInRequest { signature: "00".into(), ..good.clone() };
        let short = SignInRequest { nonce: "é".into(), ..good.clone() };
        let foreign = signed(&Sessions::new([9; 32]), &wallet, 2, 1000);
        let table = [
            (&later, 1000, "unknown_challenge"),
            (&theirs, 1000, "unknown_challenge"),
            (&foreign, 1000, "unknown_challenge"),
            (&short, 1000, "unknown_challenge"),
            (&garbled, 1000, "bad_signature"),
            (&good, good.expires_ms, "challenge_expired"),
            (&good, 1000, "ok"),
            (&good, 1000, "challenge_used"),
        ];
        for (line, (request, now_ms, expected)) in table.into_iter().enumerate() {
            assert_eq!(code(sessions.sign_in("net", request, &[3; 32], now_ms)), expected, "line {line}");
        }
        assert_eq!(
            code(sessions.sign_in("net2", &signed(&sessions, &wallet, 4, 1), &[3; 32], 1)),
            "bad_signature"
        );
    }

    #[test]
    fn sessions_end_and_are_bounded_for_each_account() {
        let mut sessions = Sessions::new([1; 32]);
        let wallet = WalletKey::from_seed(&[7; 32]);
        let mut tokens = Vec::new();
        for n in 0..=u8::try_from(ACCOUNT_MOST).unwrap() {
            // Each after the challenges of the ones before were forgotten.
            let now_ms = 1 + u64::from(n) * CHALLENGE_LIFE_MS;
            let request = signed(&sessions, &wallet, n, now_ms);
            tokens.push(sessions.sign_in("net", &request, &[n; 32], now_ms).unwrap());
        }
        assert_eq!(sessions.len(), ACCOUNT_MOST);
        let now_ms = 1 + CHALLENGE_LIFE_MS * u64::try_from(ACCOUNT_MOST).unwrap();
        assert!(sessions.account(tokens[0].token.expose(), now_ms).is_err(), "the oldest made room");
        assert_eq!(sessions.account(tokens[1].token.expose(), now_ms).unwrap(), wallet.address());
        let over = tokens[1].expires_ms;
        assert!(sessions.account(tokens[1].token.expose(), over).is_err());
    }

    #[test]
    fn an_account_cannot_sign_in_without_end() {
        let mut sessions = Sessions::new([1; 32]);
        let wallet = WalletKey::from_seed(&[7; 32]);
        for n in 0..u8::try_from(ACCOUNT_MOST).unwrap() {
            let request = signed(&sessions, &wallet, n, 1);
            assert_eq!(code(sessions.sign_in("net", &request, &[n; 32], 1)), "ok");
        }
        let request = signed(&sessions, &wallet, 99, 1);
        assert_eq!(code(sessions.sign_in("net", &request, &[99; 32], 1)), "too_many");
    }

    #[test]
    fn bearers_are_read_by_their_form() {
        let key = KeyId::from_parts(5, 6);
        let (token, sha) = key_token(key, &[7; 32]);
        let header = format!("bearer {}", token.expose());
        match Bearer::read(&header) {
            Some(Bearer::Key(id, secret)) => {
                assert_eq!(id, key);
                assert_eq!(hex(&sha256(secret)), sha);
            }
            _ => panic!("not read"),
        }
        for wrong in ["", "Bearer", "Basic abc", "Bearer ionet_x_y", "Bearer abc", "Bearer ionet_key_zz"] {
            assert!(Bearer::read(wrong).is_none(), "{wrong}");
        }
    }
}
