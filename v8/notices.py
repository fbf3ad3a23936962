"""Writes the notices of everything that the archive contains.  usage: notices.py SRC GN_OUT > LICENSES

The crate leaves out the licence files of what it contains. So the notices are taken from where they
are: the comments that open the source files which were compiled, their paragraphs about rights, each
once. Licences that these only name are added in full from Debian's packages.
"""
import glob, os, re, subprocess, sys

src, out = (os.path.abspath(path) for path in sys.argv[1:3])

# Where a folder's files come from; the first that fits.
WORKS = [
    ('third_party/abseil-cpp/', 'Abseil'),
    ('third_party/dragonbox/', 'Dragonbox'),
    ('third_party/fast_float/', 'fast_float'),
    ('third_party/fp16/', 'FP16'),
    ('third_party/googletest/', 'GoogleTest (a header)'),
    ('third_party/highway/', 'Highway'),
    ('third_party/icu/', 'ICU'),
    ('third_party/libc++abi/', 'libc++abi (LLVM)'),
    ('third_party/libc++/', 'libc++ (LLVM)'),
    ('third_party/llvm-libc/', 'LLVM libc'),
    ('third_party/simdutf/', 'simdutf'),
    ('v8/third_party/', 'Third parties in V8'),
    ('v8/', 'V8'),
    ('src/', 'rusty_v8'),
]
# Full texts that the notices above only name.
DEBIAN = [
    ('Apache License 2.0 (Abseil, LLVM, Highway, Dragonbox, fast_float, simdutf)',
     '/usr/share/common-licenses/Apache-2.0'),
    ('Notices of LLVM, as Debian keeps them, with the LLVM exceptions to the Apache License',
     '/usr/share/doc/libclang-rt-22-dev/copyright'),
    ('Notices of ICU and of the dictionaries in its data, as Debian keeps them',
     glob.glob('/usr/share/icu/*/LICENSE')[0]),
]


def compiled_files():
    """The sources and headers that ninja has seen the compiler read."""
    text = subprocess.check_output(['ninja', '-C', out, '-t', 'deps'], text=True)
    text += subprocess.check_output(['ninja', '-C', out, '-t', 'inputs', 'rusty_v8'], text=True)
    for line in sorted(set(line.strip() for line in text.splitlines())):
        path = os.path.normpath(os.path.join(out, line))
        if path.startswith(src + os.sep) and os.path.isfile(path):
            yield os.path.relpath(path, src)


def notice(path):
    """The comments at the top of a file, if they speak of rights, without their marks."""
    with open(os.path.join(src, path), encoding='utf-8', errors='replace') as file:
        text = file.read(40000)
    found = []
    while True:
        text = text.lstrip()
        block = re.match(r'/\*(.*?)\*/', text, re.S)
        lines = re.match(r'(?://[^\n]*\n)+', text)
        if block:
            comment, text = block[1], text[block.end():]
        elif lines:
            comment, text = lines[0], text[lines.end():]
        else:
            break
        comment = '\n'.join(re.sub(r'^\s*(?://+|\*+)? ?', '', line).rstrip() for line in comment.splitlines())
        found.append(comment.strip('\n =*-/#'))
    text = '\n\n'.join(comment for comment in found
                       if re.search(r'copyright|licen[sc]e|\(c\)|SPDX', comment, re.I))
    return text.strip()


RIGHTS = re.compile(
    r"copyright|licen[sc]e|\(c\)|rights reserved|permission|permitted|redistribut|warrant|liab"
    r"|SPDX|provided that|conditions|endorse|damages|'as is'|\"as is\"|public domain|authors?\b", re.I)

works = {}
for path in compiled_files():
    work = next((name for folder, name in WORKS if path.startswith(folder)), None)
    text = notice(path) if work and re.search(r'\.(c|cc|cpp|h|hpp|inc|ipp|tq|S)$', path) else ''
    # Only paragraphs about rights, and each of them once in a work.
    for paragraph in re.split(r'\n\s*\n', text):
        if len(paragraph) < 4000 and RIGHTS.search(paragraph):
            key = re.sub(r'\W+', ' ', paragraph).strip().lower()
            works.setdefault(work, {}).setdefault(key, paragraph.strip('\n'))
rule = '=' * 100
print('What the V8 archive of this folder contains, and the notices that its parts ask to be kept with it.')
for work, texts in works.items():
    print(f'\n{rule}\n{work}\n{rule}')
    for text in texts.values():
        print(f'\n{text}')
for title, path in DEBIAN:
    print(f'\n{rule}\n{title}\n{rule}\n')
    print(open(path, encoding='utf-8').read())
