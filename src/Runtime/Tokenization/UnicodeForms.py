"""Writes UnicodeForms.txt from Python's own Unicode data. Usage: python3 UnicodeForms.py > UnicodeForms.txt

Lines: `= CHARACTER PARTS…` canonical decomposition, `! …` the same but never composed again, `~ …` compatibility decomposition,
`^ FIRST LAST CLASS` combining class of a range. Hexadecimal code points, Hangul left out (it is computed)."""
import sys
import unicodedata as u

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
