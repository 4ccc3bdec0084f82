# SPDX-License-Identifier: Apache-2.0
"""Builds the pre-training corpus of the bundled demo checkpoint.

The text comes from documentation, handbooks and public-domain books packaged in Debian main.  Each
package is fetched with ``apt-get download`` and unpacked with ``dpkg -x`` (nothing is installed), the
running prose is extracted, cleaned and deduplicated, and the documents are split into a training and a
held-out part.

    python3 corpus.py --work WORKDIR

writes ``WORKDIR/train.jsonl``, ``WORKDIR/heldout.jsonl`` (one ``{"package": ..., "text": ...}`` a line)
and ``WORKDIR/packages.json`` (version, licence and size of each package's share).
Needs lxml and a Debian system (bookworm was used) with ``apt-get update`` done.
"""

import argparse
import gzip
import hashlib
import html
import json
import multiprocessing
import pathlib
import random
import re
import struct
import subprocess
import zlib

from lxml import etree
from lxml import html as lxml_html

# package: (licence of the text, extractor, regular expression that the file path must match)
PACKAGES = {
    # books and stories
    "r-cran-janeaustenr": ("public domain (novels), MIT (package)", "rdb", r"/data/Rdata\.rdb$"),
    "sword-text-web": ("public domain", "sword", r"\.bzz$"),
    "dict-devil": ("public domain", "dict", r"\.dict\.dz$"),
    "dict-jargon": ("public domain", "dict", r"\.dict\.dz$"),
    "dict-foldoc": ("GFDL-1.1+ (no invariant sections)", "dict", r"\.dict\.dz$"),
    "dict-gcide": ("GPL-2+", "dict", r"\.dict\.dz$"),
    "anarchism": ("GPL-2", "html", r"\.html(\.gz)?$"),
    "abs-guide": ("public domain", "html", r"\.html(\.gz)?$"),
    "png-definitive-guide": ("GFDL-1.1+", "html", r"\.html(\.gz)?$"),
    "mh-book": ("GPL-2+", "html", r"\.html?(\.gz)?$"),
    "endless-sky-data": ("GPL-3+", "backtick", r"/data/.*\.txt$"),
    "wesnoth-1.16-data": ("GPL-2+", "cfg", r"\.cfg$"),
    **{
        f"wesnoth-1.16-{name}": ("GPL-2+", "cfg", r"\.cfg$")
        for name in "did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs".split()
    },
    "naev-data": ("GPL-3+", "lua", r"\.(lua|xml)$"),
    "widelands-data": ("GPL-2+", "lua", r"\.lua$"),
    "freedroidrpg-data": ("GPL-2+", "lua", r"\.lua$"),
    "freeorion-data": ("GPL-2", "keyed", r"/stringtables/en\.txt$"),
    "crawl-common": ("GPL-2+", "text", r"/descript/(?!quotes)[a-z]+\.txt$"),
    "stellarium-data": ("GPL-2+", "html", r"/description\.en\.utf8$"),
    # handbooks about Debian
    "debian-handbook": ("GPL-2+ or CC-BY-SA-3.0", "html", r"/en-US/.*\.html$"),
    "installation-guide-amd64": ("GPL-2", "html", r"/en/.*\.html$"),
    "doc-debian": ("GPL-2+ and other free", "text", r"\.(txt|text)(\.gz)?$|manifesto"),
    "debian-faq": ("copying and modification under the same notice", "html", r"\.html$"),
    "debian-policy": ("GPL-2+", "html", r"\.html$"),
    "debian-reference-en": ("GPL-2+", "html", r"\.html$"),
    "debian-history": ("GPL-2+", "html", r"(/|\.)en\.html$|/index\.html$"),
    "debian-kernel-handbook": ("GPL-2+", "html", r"\.html$"),
    "developers-reference": ("GPL-2+", "html", r"\.html$"),
    "maint-guide": ("GPL-2+", "html", r"\.html$"),
    "debmake-doc": ("MIT", "html", r"\.html$"),
    "harden-doc": ("GPL-2", "html", r"\.html$"),
    "apt-doc": ("GPL-2+", "html", r"\.html$"),
    "aptitude-doc-en": ("GPL-2+", "html", r"\.html$"),
    "live-manual-html": ("GPL-3+", "html", r"\.html$"),
    "freedombox-doc-en": ("CC-BY-SA-4.0 and AGPL-3+", "html", r"\.html$"),
    # manuals of desktop programs
    "gnome-user-docs": ("CC-BY-SA-3.0", "xml", r"/help/C/"),
    "gnome-devel-docs": ("CC-BY-SA-3.0 and GFDL-NIV-1.1+", "xml", r"/help/C/"),
    "mate-user-guide": ("GFDL-1.1+ (no invariant sections)", "xml", r"/help/C/"),
    "xiphos-data": ("GPL-2+", "xml", r"/help/C/"),
    "gimp-help-en": ("GFDL-1.2+ (no invariant sections)", "html", r"\.html$"),
    "libreoffice-help-en-us": ("MPL-2.0", "html", r"\.html$"),
    "gnucash-docs": ("GFDL-NIV-1.1+", "html", r"/gnucash-(guide|manual|help)(-en)?/.*\.html$"),
    "khelpcenter": ("GPL-2+ and GFDL-1.2+", "xml", r"/HTML/en/.*\.docbook$"),
    "krusader": ("GPL-2+ and GFDL-1.1+", "xml", r"/HTML/en/.*\.docbook$"),
    "kate5-data": ("GFDL-NIV-1.2+", "xml", r"/HTML/en/.*\.docbook$"),
    "kmymoney-common": ("GPL-2+", "xml", r"/HTML/en/.*\.docbook$"),
    "lyx-common": ("GPL-2+", "lyx", r"/lyx/doc/[^/]*\.lyx$"),
    "kicad-doc-en": ("GPL-3+ or CC-BY-3.0+", "html", r"\.html$"),
    "denemo-doc": ("GPL-3+", "html", r"\.html$"),
    "renpy-doc": ("MIT", "html", r"\.html$"),
    "lilypond-doc-html": ("GFDL-1.3+ (no invariant sections)", "html", r"/[a-z0-9-]+\.html$"),
    # systems, servers and languages
    "linux-doc-6.1": ("GPL-2", "html", r"\.html$"),
    "manpages": ("GPL-2+ and Linux-man-pages-copyleft", "man", r"/man\d/.*\.\d\w*\.gz$"),
    "manpages-dev": ("GPL-2+ and Linux-man-pages-copyleft", "man", r"/man\d/.*\.\d\w*\.gz$"),
    "perl-doc": ("GPL-1+ or Artistic", "pod", r"\.pod(\.gz)?$"),
    "python3.11-doc": ("PSF-2", "html", r"\.html$"),
    "python-django-doc": ("BSD-3-Clause", "html", r"\.html$"),
    "postgresql-doc-15": ("PostgreSQL", "html", r"\.html$"),
    "postgis-doc": ("GPL-2+", "html", r"\.html?$"),
    "sqlite3-doc": ("public domain", "html", r"\.html$"),
    "git-doc": ("GPL-2", "html", r"\.html$"),
    "apache2-doc": ("Apache-2.0", "html", r"/en/.*\.html$"),
    "exim4-doc-html": ("GPL-2+", "html", r"\.html$"),
    "postfix-doc": ("IPL-1.0 or EPL-2.0", "html", r"\.html(\.gz)?$"),
    "bind9-doc": ("MPL-2.0", "html", r"\.html$"),
    "mailman3-doc": ("GPL-3+", "html", r"\.html$"),
    "shorewall-doc": ("GFDL-1.2+ (no invariant sections)", "html", r"\.html?$"),
    "libvirt-doc": ("LGPL-2.1+", "html", r"\.html$"),
    "xen-doc": ("GPL-2 and CC-BY-4.0", "html", r"\.html$"),
    "bacula-doc": ("CC-BY-SA-4.0", "html", r"\.html$"),
    "tomcat10-docs": ("Apache-2.0", "html", r"\.html$"),
    "keystone-doc": ("Apache-2.0", "html", r"\.html$"),
    "nova-doc": ("Apache-2.0", "html", r"\.html$"),
    "neutron-doc": ("Apache-2.0", "html", r"\.html$"),
    "cinder-doc": ("Apache-2.0", "html", r"\.html$"),
    "swift-doc": ("Apache-2.0", "html", r"\.html$"),
    "rust-doc": (
        "MIT or Apache-2.0",
        "html",
        r"/html/(book|reference|nomicon|rustc|cargo|edition-guide|rust-by-example|embedded-book|rustdoc)/.*\.html$",
    ),
    "qtbase5-doc-html": ("GFDL-NIV-1.3", "html", r"\.html$"),
    "erlang-doc": ("Apache-2.0", "html", r"\.html$"),
    "ghc-doc": ("BSD-3-Clause", "html", r"/users_guide/.*\.html$"),
    "rt5-doc-html": ("GPL-2", "html", r"\.html$"),
    "wireshark-doc": ("GPL-2+", "html", r"\.html$"),
    "mercurial-common": ("GPL-2+", "text", r"/helptext/.*\.txt$"),
    "nodejs-doc": ("MIT", "html", r"\.html$"),
    "cmake-doc": ("BSD-3-Clause", "html", r"\.html$"),
    "zsh-doc": ("MIT-like (Zsh)", "html", r"\.html$"),
    "racket-doc": ("MIT or Apache-2.0", "html", r"\.html$"),
    "swi-prolog-doc": ("BSD-2-Clause", "html", r"\.html$"),
    "libboost1.74-doc": ("BSL-1.0", "html", r"\.html$"),
    # mathematics and science
    "python-sympy-doc": ("BSD-3-Clause", "html", r"\.html$"),
    "python-scipy-doc": ("BSD-3-Clause", "html", r"\.html$"),
    "python-sklearn-doc": ("BSD-3-Clause", "html", r"\.html$"),
    "maxima-doc": ("GPL-2+", "html", r"\.html$"),
    "octave-doc": ("GPL-3+", "html", r"\.html$"),
    "r-doc-html": ("GPL-2+", "html", r"\.html$"),
    "grass-doc": ("GPL-2+", "html", r"\.html$"),
    "gnu-standards": ("GFDL-1.3+ (no invariant sections)", "html", r"\.html(\.gz)?$"),
}

SKIP_PATH = re.compile(
    r"genindex|/search\.html|py-modindex|_modules/|/_sources/|changelog|/release-?notes?|/NEWS|copyright", re.I
)
PACKAGE_CAP = 12_000_000  # characters kept of one package, so that no single manual dominates
DOCUMENT_CAP = 16_000  # a longer file is cut into several documents
HELDOUT_SHARE = 0.01


# ---------------------------------------------------------------- reading


def read_bytes(path):
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return data


def read_text(path):
    data = read_bytes(path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def blocks(text):
    """Paragraphs of plain text: runs of lines between blank lines."""
    return re.split(r"\n[ \t]*\n", text)


BLOCK_TAGS = {
    "p", "div", "ul", "ol", "dl", "li", "dd", "dt", "table", "tr", "td", "blockquote", "section", "article",
    "h1", "h2", "h3", "h4", "h5", "h6", "pre", "para", "itemizedlist", "orderedlist", "variablelist", "listitem",
    "programlisting", "screen", "note", "tip", "figure", "hr", "center", "form", "body", "main", "details",
}
DROP_TAGS = {
    "script", "style", "pre", "nav", "header", "footer", "head", "svg", "math", "button", "noscript", "select",
    "programlisting", "screen", "synopsis", "title", "code-block", "indexterm", "remark", "info", "sup",
}
DROP_CLASS = re.compile(
    r"nav(header|footer|bar|igation)|sidebar|related|footer|header-?link|breadcrumb|toc\b|highlight|copyright|copyleft"
    r"|MathJax|SIntrapara-hidden|manvolnum|versionheader",
    re.I,
)


def local_name(element):
    return element.tag.rsplit("}", 1)[-1].lower() if isinstance(element.tag, str) else ""


def flow(element, out):
    """Appends the paragraphs below an element: text between block boundaries, inline markup dropped."""
    name = local_name(element)
    if not name or name in DROP_TAGS:
        return
    if name != "body" and any(DROP_CLASS.search(element.get(key) or "") for key in ("class", "id")):
        return
    is_block = name in BLOCK_TAGS
    if is_block:
        out.append("")
    if name == "br":
        out[-1] += " "
    out[-1] += element.text or ""
    for child in element:
        flow(child, out)
        child_name = local_name(child)
        if child_name in BLOCK_TAGS or child_name in DROP_TAGS and child_name not in {"sup", "math", "svg", "indexterm"}:
            out.append("")
        out[-1] += child.tail or ""


def from_html(path):
    try:
        # bytes with an explicit encoding: many old pages declare none
        tree = lxml_html.document_fromstring(read_text(path).encode(), parser=lxml_html.HTMLParser(encoding="utf-8"))
    except (etree.ParserError, etree.XMLSyntaxError, ValueError):
        return []
    root = tree.find(".//main")
    if root is None:
        root = tree.find(".//body")
    out = [""]
    try:
        flow(root if root is not None else tree, out)
    except RecursionError:
        return []
    return out


ENTITY_WORDS = {"LMB": "left mouse button", "RMB": "right mouse button", "MMB": "middle mouse button"}


def from_xml(path):
    def entity(match):
        word = match.group(1)
        if word in ("lt", "gt", "amp", "quot", "apos"):
            return match.group(0)
        plain = html.unescape(match.group(0))
        if plain != match.group(0):
            return plain
        return ENTITY_WORDS.get(word, word.upper() if len(word) < 4 else word[0].upper() + word[1:])

    if not re.search(r"\.(page|docbook|xml)$", path.name):
        return []
    text = re.sub(r"<!DOCTYPE[^\[>]*(\[.*?\]\s*)?>", "", read_text(path), flags=re.S)
    text = re.sub(r"&([A-Za-z][\w.-]*);", entity, text)
    try:
        root = etree.fromstring(text.encode(), parser=etree.XMLParser(recover=True, resolve_entities=False, no_network=True))
    except etree.XMLSyntaxError:
        return []
    if root is None:
        return []
    out = [""]
    flow(root, out)
    return out


def from_text(path):
    return [b for b in blocks(read_text(path)) if not re.match(r"[ \t]{8}", b)]


def from_dict(path):
    """dictd databases: an indented article below each headword."""
    text = read_text(path)
    text = re.sub(r"\[(?:1913 Webster|PJC|WordNet 1\.5|Webster 1913 Suppl\.|[^\[\]\n]{0,24}\bPJC)[^\[\]]*\]", "", text)
    text = re.sub(r"\s--\s?[A-Z][\w.' ]{1,30}(?:\([^)]*\))?\.?\s*(?=\n\s*\n|\n?$)", "\n\n", text)
    out = []
    for block in blocks(text):
        if "\\" in block.split("\n")[0]:  # headword line with its pronunciation: the definition follows it
            block = re.sub(r"^.*?\n(?=\s+1\. |\s+[A-Z])", "", block.strip(), count=1, flags=re.S)
        block = re.sub(r"[{}]", "", block)
        block = re.sub(r"<[^>]{1,40}>", "", block)
        block = re.sub(r"^\s*(?:\d+\.|\([a-z]\))\s+", "", block)
        block = re.sub(r"^\s*(?:\([A-Z][A-Za-z. &]{1,20}\)\s*)+", "", block)
        out.append(block)
    return out


def from_rdb(path):
    """R's lazy-load database: compressed blocks that hold character vectors in XDR form; lines of novels."""
    data, out = path.read_bytes(), []
    for offset, length in rdb_lengths(path):
        raw = zlib.decompress(data[offset + 4 : offset + length])  # after the plain size, 4 bytes
        out += blocks("\n".join(character_vector(raw)))
    return out


def rdb_lengths(path):
    """(offset, length) pairs of the blocks, read from the integer vectors of the index beside the database."""
    raw = read_bytes(path.with_suffix(".rdx"))
    pairs = []
    for match in re.finditer(rb"\x00\x00\x00\x0d\x00\x00\x00\x02(.{8})", raw, flags=re.S):
        pairs.append(struct.unpack(">II", match.group(1)))
    return pairs


def character_vector(raw):
    """The strings of the first character vector in an R XDR stream."""
    lines = []
    for match in re.finditer(rb"\x00\x00\x00\x10(.{4})", raw, flags=re.S):
        (count,) = struct.unpack(">I", match.group(1))
        position = match.end()
        if not 0 < count < 1_000_000:
            continue
        lines = []
        for _ in range(count):
            flags, length = struct.unpack(">Ii", raw[position : position + 8])
            if flags & 0xFF != 9:
                lines = []
                break
            position += 8
            if length > 0:
                lines.append(raw[position : position + length].decode("utf-8", "replace"))
                position += length
            else:
                lines.append("")
        if len(lines) == count and count > 100:
            return lines
    return lines


def from_sword(path):
    """A SWORD zText module: zlib blocks, listed by offset and size in the .bzs file; OSIS markup inside."""
    index, data, out = path.with_suffix(".bzs").read_bytes(), path.read_bytes(), []
    for i in range(0, len(index) - 11, 12):
        offset, size, _ = struct.unpack("<III", index[i : i + 12])
        if size == 0:
            continue
        text = zlib.decompress(data[offset : offset + size]).decode("utf-8", "replace")
        text = re.sub(r"<note\b.*?</note>|<title\b.*?</title>", "", text, flags=re.S)
        text = re.sub(r"<div[^>]*type=.(?:x-p|paragraph|section|chapter)[^>]*>|<chapter[^>]*>|<lb[^>]*>|<milestone[^>]*>", "\n\n", text)
        text = html.unescape(re.sub(r"<[^>]+>", "", text))
        for block in blocks(text):
            # very long runs are cut at sentence ends
            out += re.findall(r".{200,900}?[.!?][\u201d\u2019\"']*(?=\s|$)|.+$", " ".join(block.split()), flags=re.S)
    return out


def from_cfg(path):
    """Translatable strings of Battle for Wesnoth's campaign files: story and dialogue."""
    out = []
    for match in re.finditer(r"_\s*\"((?:[^\"]|\"\")*)\"", read_text(path)):
        out += blocks(re.sub(r"<[^>]+>", "", match.group(1).replace('""', '"')))
    return out


def from_backtick(path):
    return re.findall(r"`([^`]*)`", read_text(path))


def from_lua(path):
    """Translatable strings of Lua scripts, and the text of XML data beside them."""
    text = read_text(path)
    if path.suffix == ".xml":
        found = [(t, "") for t in re.findall(r"<(?:description|text|body|news|bar)[^>]*>([^<]{40,})<", text)]
    else:
        found = re.findall(r"_\(?\s*(?:\[\[(.*?)\]\]|\"((?:[^\"\\]|\\.)*)\")", text, flags=re.S)
    out = []
    for long, short in found:
        out += blocks(re.sub(r"\\n", "\n", long or short).replace('\\"', '"'))
    return out


def from_keyed(path):
    """A table of strings: a key in capitals on a line of its own, then the text."""
    text = re.sub(r"\[\[[A-Z_]+ ([^\]]*)\]\]|<[^>]+>|'''", r"\1", read_text(path))
    return [line for block in blocks(re.sub(r"^[A-Z_0-9]+$", "\n", text, flags=re.M)) for line in block.split("\n")]


def from_lyx(path):
    out, depth = [], 0
    for line in read_text(path).split("\n"):
        if line.startswith("\\begin_inset"):
            depth += 1
        elif line.startswith("\\end_inset"):
            depth -= 1
        elif depth == 0 and line.startswith("\\begin_layout"):
            out.append("")
        elif depth == 0 and out and not line.startswith("\\"):
            out[-1] += line
    return out


ROFF_BREAK = re.compile(r"^[.'](PP|P|LP|SH|SS|TP|IP|HP|RS|RE|TQ|sp|br)\b")
ROFF_FONT = re.compile(r"^\.(B|I|R|SM|SB|BR|RB|BI|IB|IR|RI)\s+(.*)$")


def from_man(path):
    out, skip = [""], None
    for line in read_text(path).split("\n"):
        if skip:
            if re.match(skip, line):
                skip = None
                out.append("")
            continue
        if re.match(r"^\.(nf|EX)\b", line):
            skip = r"^\.(fi|EE)\b"
        elif line.startswith(".TS"):
            skip = r"^\.TE"
        elif ROFF_BREAK.match(line):
            out.append("")
        elif font := ROFF_FONT.match(line):
            words = [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', font.group(2))]
            out[-1] += ("" if len(font.group(1)) == 2 and font.group(1) not in ("SM", "SB") else " ").join(words) + "\n"
        elif not line.startswith((".", "'")):
            out[-1] += line + "\n"
    names = {"aq": "'", "dq": '"', "em": " - ", "en": "-", "lq": '"', "rq": '"', "co": "", "bu": "", "oq": "'", "cq": "'", "ha": "^", "ti": "~"}
    text = "\n\n".join(out)
    text = re.sub(r"\\f(\[[A-Z]*\]|\([A-Z]{2}|.)|\\s[+-]?\d|\\[&|^%:/,]|\\c$", "", text, flags=re.M)
    text = re.sub(r"\\[(*\[]([a-z]{2})\]?", lambda m: names.get(m.group(1), ""), text)
    text = text.replace("\\-", "-").replace("\\e", "\\").replace("\\ ", " ").replace("\\~", " ")
    return blocks(text)


def from_pod(path):
    out = []
    for block in blocks(read_text(path)):
        if block.startswith("=") or re.match(r"[ \t]", block):
            continue
        block = re.sub(r"L<([^<>|]*)\|[^<>]*>", r"\1", block)
        for _ in range(4):
            block = re.sub(r"[XZ]<[^<>]*>", "", block)
            block = re.sub(r"[A-Z]<<*\s?([^<>]*?)\s?>>*", r"\1", block)
        out.append(block)
    return out


EXTRACTORS = {
    "html": from_html, "xml": from_xml, "text": from_text, "dict": from_dict, "rdb": from_rdb, "sword": from_sword,
    "cfg": from_cfg, "lua": from_lua, "keyed": from_keyed, "backtick": from_backtick, "lyx": from_lyx, "man": from_man, "pod": from_pod,
}

STORIES = {"rdb", "sword", "cfg", "lua", "keyed", "backtick"}

# ---------------------------------------------------------------- cleaning

PUNCTUATION = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00ab": '"', "\u00bb": '"',
    "\u2013": "-", "\u2014": " - ", "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
    "\u00ad": None, "\u200b": None, "\ufeff": None, "\u00b6": None, "\u2022": None, "\uf0c1": None, "`": "'",
})
STOPWORDS = set(
    "the of and to a in is it that for you on with as are be this by or not can from have an at if was will he they which "
    "but all has his we i your one there their when do so were been had would what no more who its may my her she him them "
    "than into then only also any some such other these those our out up about must should could how after before because".split()
)
# field names of data-to-text sets about restaurants: the demo tunes on such data, so none may be in here
FORBIDDEN = re.compile(r"eatType|priceRange|familyFriendly|customer rating|name\[|food\[|area\[", re.I)
MARKUP = re.compile(r"[{}<>|\\^~=_\[\]#*@$]|::|//|\(\)|--\w|->|&\w+;")


def clean(paragraph):
    text = html.unescape(paragraph).translate(PUNCTUATION).replace("\u2026", "...")
    text = re.sub(r"\\?''|``", '"', text)
    text = re.sub(r"(?<=[\w.,;!?\"'])--+(?=[\w\"'])", " - ", text)
    text = re.sub(r"(?<![\w/])_([A-Za-z][\w' -]*)_(?!\w)", r"\1", text)  # emphasis in plain text
    text = " ".join(text.split())
    text = re.sub(r" ?\[\d{1,3}\]| \(\d{4}-\d\d-\d\d\)$", "", text)  # footnote marks, dates of dictionary entries
    text = re.sub(r"\s+([,.;:!?])(?=\s|$)", r"\1", text)
    return text.strip()


def is_prose(text, story):
    """Whether a paragraph is running English text; the bounds are wider for stories and dialogue."""
    n = len(text)
    if not (20 if story else 40) <= n <= 3000 or not re.match(r"[\"'(]?[A-Z0-9]", text) or not re.search(r"[.!?][\"')]*$", text):
        return False
    letters = sum(c.isalpha() or c == " " for c in text)
    if letters < 0.91 * n or sum(ord(c) > 126 for c in text) > 0.01 * n or len(MARKUP.findall(text)) > n / 250:
        return False
    words = re.findall(r"[A-Za-z']+", text)
    if len(words) < (4 if story else 8) or not 3.0 <= sum(map(len, words)) / len(words) <= 6.6 or max(map(len, words)) > 24:
        return False
    if sum(w.lower() in STOPWORDS for w in words) < (0.2 if story else 0.28) * len(words):
        return False
    capitals = sum(w[0].isupper() for w in words)
    if capitals > 0.35 * len(words) or len({w.lower() for w in words}) < 0.4 * min(len(words), 60):
        return False
    return not FORBIDDEN.search(text)


def documents_of(job):
    package, kind, path = job
    paragraphs = []
    try:
        raw = EXTRACTORS[kind](path)
    except (OSError, zlib.error, struct.error, etree.LxmlError, UnicodeError) as error:
        print(f"skipped {package}: {path.name}: {error}")
        return package, []
    for paragraph in raw:
        text = clean(paragraph)
        if is_prose(text, kind in STORIES):
            paragraphs.append(text)
    return package, paragraphs


def fingerprint(text):
    return hashlib.blake2b(re.sub(r"[^a-z]", "", text.lower()).encode(), digest_size=8).digest()


def openings(text):
    """A second key that catches boilerplate which differs only towards its end."""
    return hashlib.blake2b(re.sub(r"[^a-z]", "", text.lower())[:70].encode(), digest_size=8).digest()


# ---------------------------------------------------------------- main


def fetch(package, work):
    """Downloads and unpacks a package; returns its folder."""
    folder = work / "pkg" / package
    if folder.exists():
        return folder
    debs = work / "deb"
    debs.mkdir(parents=True, exist_ok=True)
    if not list(debs.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "download", "-q", package], cwd=debs, check=True)
    folder.mkdir(parents=True)
    subprocess.run(["dpkg", "-x", str(next(debs.glob(f"{package}_*.deb"))), str(folder)], check=True)
    return folder


def version(package, work):
    deb = next((work / "deb").glob(f"{package}_*.deb"))
    return subprocess.run(["dpkg-deb", "-f", str(deb), "Version"], capture_output=True, text=True, check=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="these packages alone (for a quick test)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    jobs = []
    for package, (_, kind, pattern) in PACKAGES.items():
        if args.only and package not in args.only:
            continue
        folder = fetch(package, args.work)
        for path in sorted(folder.rglob("*")):
            name = "/" + str(path.relative_to(folder))
            if path.is_file() and not path.is_symlink() and re.search(pattern, name) and not SKIP_PATH.search(name):
                jobs.append((package, kind, path))
    seen, starts, kept, size = set(), {}, {}, {}
    with multiprocessing.Pool(args.processes) as pool:
        for package, paragraphs in pool.imap(documents_of, jobs, chunksize=8):
            document, length = [], 0
            for text in paragraphs:
                key, start = fingerprint(text), openings(text)
                starts[start] = starts.get(start, 0) + 1
                if key in seen or starts[start] > 2 or size.get(package, 0) > PACKAGE_CAP:
                    continue
                seen.add(key)
                size[package] = size.get(package, 0) + len(text)
                document.append(text)
                length += len(text)
                if length > DOCUMENT_CAP:
                    kept.setdefault(package, []).append("\n".join(document))
                    document, length = [], 0
            if length > 150:
                kept.setdefault(package, []).append("\n".join(document))
    rows = [{"package": p, "text": t} for p, texts in kept.items() for t in texts]
    random.Random(20240601).shuffle(rows)
    split = int(len(rows) * HELDOUT_SHARE)
    for name, part in (("heldout", rows[:split]), ("train", rows[split:])):
        with open(args.work / f"{name}.jsonl", "w", encoding="utf-8") as f:
            for row in part:
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{name}: {len(part)} documents, {sum(len(r['text']) for r in part):,} characters")
    summary = {
        p: {"version": version(p, args.work), "licence": PACKAGES[p][0], "documents": len(kept.get(p, [])), "characters": size.get(p, 0)}
        for p in PACKAGES
        if not args.only or p in args.only
    }
    (args.work / "packages.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
