package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func sampleToken() Token {
	t := Token{Expires: time.Unix(1_900_000_000, 0).UTC(), Addr: "[2001:db8::7]:7420"}
	for i := range t.Secret {
		t.Secret[i], t.Fingerprint[i] = byte(i), byte(255-i)
	}
	copy(t.Invite[:], "sixteen letters!")
	return t
}

func TestTokenRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Token{
			Invite: [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "invite")), Secret: [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "secret")),
			Fingerprint: [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "fingerprint")),
			Expires:     time.Unix(rapid.Int64Range(0, 1<<40).Draw(t, "expires"), 0).UTC(),
			Addr:        rapid.StringMatching(`[a-z][a-z0-9.-]{0,60}:[1-9][0-9]{0,3}`).Draw(t, "addr"),
		}
		text := want.String()
		got, err := ParseToken(text)
		if err != nil || got != want {
			t.Fatalf("%s: %+v, %v", text, got, err)
		}
		// As a mail program breaks it.
		at := rapid.IntRange(0, len(text)).Draw(t, "break")
		if got, err = ParseToken(" " + text[:at] + "\r\n  " + text[at:] + "\n"); err != nil || got != want {
			t.Fatalf("broken into lines: %v", err)
		}
	})
}

// Whatever is missing or changed, the token is recognised as torn.
func TestTokenDamage(t *testing.T) {
	text := sampleToken().String()
	for i := range len(text) {
		for _, torn := range []string{text[:i], text[i+1:], text[:i] + text[i+1:]} {
			if _, err := ParseToken(torn); !errors.Is(err, ErrToken) {
				t.Fatalf("%q: %v", torn, err)
			}
		}
		for _, c := range "Ab-_9!" {
			if rune(text[i]) == c {
				continue
			}
			if _, err := ParseToken(text[:i] + string(c) + text[i+1:]); !errors.Is(err, ErrToken) {
				t.Fatalf("letter %d changed to %c: %v", i, c, err)
			}
		}
	}
	if _, err := ParseToken(text + text); !errors.Is(err, ErrToken) {
		t.Fatalf("twice: %v", err)
	}
	nowhere := sampleToken()
	nowhere.Addr = "0.0.0.0:7420"
	if _, err := ParseToken(nowhere.String()); !errors.Is(err, ErrToken) || !errors.Is(err, ErrBadAddr) {
		t.Fatalf("an address that is none: %v", err)
	}
}

// The drawing holds: a token of today is read tomorrow.
func TestTokenGolden(t *testing.T) {
	const want = "vde1-c2l4dGVlbiBsZXR0ZXJzIQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f__79_Pv6-fj39vX08_Lx8O_u7ezr6uno5-bl5OPi4eAAsz9xAAAAAFsyMDAxOmRiODo6N106NzQyMEICOc8"
	if got := sampleToken().String(); got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
}

func FuzzToken(f *testing.F) {
	f.Add(sampleToken().String())
	f.Add("vde1-")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			if !errors.Is(err, ErrToken) {
				t.Fatal(err)
			}
			return
		}
		if again, err := ParseToken(token.String()); err != nil || again != token {
			t.Fatalf("%+v reads back as %+v, %v", token, again, err)
		}
	})
}

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "n1", "host-2", "1st", "a.b_c", strings.Repeat("x", 63)} {
		if err := CheckName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "12", "-a", ".a", "a b", "ä", "a/b", strings.Repeat("x", 64), "a\n"} {
		if err := CheckName(bad); !errors.Is(err, ErrBadName) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if name := DefaultName(); CheckName(name) != nil || CheckName(uniqueName(name, 999)) != nil {
		t.Error(name)
	}
	if got := uniqueName(strings.Repeat("x", 63), 12); len(got) != 63 || !strings.HasSuffix(got, "x-12") {
		t.Error(got)
	}
	if got := uniqueName("a", 1); got != "a" {
		t.Error(got)
	}
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		listen, advertise, want string // want "": refused
	}{
		{"127.0.0.1:7420", "", "127.0.0.1:7420"},
		{"[::1]:7420", "", "[::1]:7420"},
		{"0.0.0.0:7420", "", ""},
		{":7420", "", ""},
		{"[::]:7420", "", ""},
		{":7420", "vde.example.org:7420", "vde.example.org:7420"},
		{":7420", "0.0.0.0:7420", ""},
		{"10.0.0.1", "", ""},
		{"10.0.0.1:0", "", ""},
		{"10.0.0.1:99999", "", ""},
		{"10.0.0.1:vde", "", ""},
		{"10.0.0.1 :5", "", ""},
		{strings.Repeat("h", 300) + ":5", "", ""},
		{"10.0.0.1:7420", "host:", ""},
	} {
		got, err := advertised(c.listen, c.advertise)
		if c.want == "" && !errors.Is(err, ErrBadAddr) || c.want != "" && (err != nil || got != c.want) {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}
