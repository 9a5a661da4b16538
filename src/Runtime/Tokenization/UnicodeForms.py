"""Writes UnicodeForms.txt from Python's own Unicode data. Usage: python3 UnicodeForms.py > UnicodeForms.txt
With --digests it prints what UnicodeFormsTests compares with: per form, a SHA-256 over the normalized texts that the test makes as well.

Lines: `= CHARACTER PARTS…` canonical decomposition, `! …` the same but never composed again, `~ …` compatibility decomposition,
`^ FIRST LAST CLASS` combining class of a range. Hexadecimal code points, Hangul left out (it is computed)."""
import hashlib
import sys
import unicodedata as u

if "--digests" in sys.argv:
    whole = [chr(c) for c in range(0x30000) if not 0xD800 <= c <= 0xDFFF]
    texts = ["".join(whole[i:i + 64]) for i in range(0, len(whole), 64)]
    changing = [c for c in whole if u.decomposition(c) or u.combining(c) or 0x1100 <= ord(c) <= 0x11FF]
    state = 1
    for _ in range(20000):
        text = "e"
        for _ in range(6):
            state = state * 1103515245 + 12345 & 0x7FFFFFFF
            text += changing[(state >> 8) % len(changing)]
        texts.append(text)
    for form in "NFC", "NFD", "NFKC", "NFKD":
        print(form, hashlib.sha256("\n".join(u.normalize(form, t) for t in texts).encode()).hexdigest(), len(changing))
    sys.exit()

print("#", "Unicode", u.unidata_version, "from Python", sys.version.split()[0])
for c in map(chr, range(0x110000)):
    parts = u.decomposition(c).split()
    if not parts or 0xAC00 <= ord(c) <= 0xD7A3:
        continue
    if parts[0].startswith("<"):
        kind, parts = "~", parts[1:]
    else:
        kind = "=" if u.normalize("NFC", c) == c else "!"
    print(kind, "%X" % ord(c), *("%X" % int(p, 16) for p in parts))
first = 0
for i in range(1, 0x110000):
    if u.combining(chr(i)) != u.combining(chr(first)):
        if u.combining(chr(first)):
            print("^", "%X" % first, "%X" % (i - 1), u.combining(chr(first)))
        first = i
