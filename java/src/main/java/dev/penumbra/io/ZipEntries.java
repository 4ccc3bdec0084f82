package dev.penumbra.io;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Function;

/**
 * The entries of a mapped zip file, zip64 included, as views: {@code torch.save} stores without compression, so that an
 * entry's bytes lie in the file as they are. The numbers in comments are the offsets of PKWARE's APPNOTE.
 */
final class ZipEntries {

    private static final ValueLayout.OfShort U16 = ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfInt U32 = ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfLong U64 = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    private static final int END = 0x06054b50;
    private static final int END_BYTES = 22;
    private static final int END64 = 0x06064b50;
    private static final int END64_BYTES = 56;
    private static final int LOCATOR64 = 0x07064b50;
    private static final int LOCATOR64_BYTES = 20;
    private static final int CENTRAL = 0x02014b50;
    private static final int CENTRAL_BYTES = 46;
    private static final int LOCAL = 0x04034b50;
    private static final int LOCAL_BYTES = 30;
    private static final int LONGEST_COMMENT = 0xffff;
    /** A field that holds this has its value in the zip64 record. */
    private static final long IN_ZIP64_16 = 0xffff;
    private static final long IN_ZIP64_32 = 0xffffffffL;
    private static final int ZIP64_EXTRA = 1;
    private static final int ENCRYPTED = 1;

    private record Entry(int flags, int method, long compressed, long size, long local) {
    }

    private final MemorySegment file;
    private final Function<String, TorchFileException> failure;
    private final Map<String, Entry> entries = new TreeMap<>();

    /** @param failure makes the exception for a message */
    ZipEntries(MemorySegment file, Function<String, TorchFileException> failure) {
        this.file = file;
        this.failure = failure;
        readDirectory();
    }

    Iterable<String> names() {
        return entries.keySet();
    }

    boolean has(String name) {
        return entries.containsKey(name);
    }

    /** The bytes of a stored entry, a view of the file. */
    MemorySegment bytes(String name) {
        Entry entry = entries.get(name);
        if (entry == null) {
            throw failure.apply("expected an entry " + name + " in the zip, found none of that name");
        }
        if (entry.method() != 0 || (entry.flags() & ENCRYPTED) != 0 || entry.compressed() != entry.size()) {
            throw failure.apply("entry " + name + ": expected it stored as it is, found it compressed or encrypted");
        }
        if (record(entry.local(), LOCAL_BYTES, "header of entry " + name) != LOCAL) {
            throw failure.apply("entry " + name + ": expected its header at byte " + entry.local() + ", found none");
        }
        long begin = entry.local() + LOCAL_BYTES + u16(entry.local() + 26) + u16(entry.local() + 28);
        if (begin > file.byteSize() || entry.size() > file.byteSize() - begin) {
            throw failure.apply("entry " + name + ": expected " + entry.size() + " bytes at " + begin + ", found a file of "
                    + file.byteSize() + " bytes: it is truncated");
        }
        return file.asSlice(begin, entry.size());
    }

    private void readDirectory() {
        long end = findEnd();
        long count = u16(end + 10);
        long size = u32(end + 12);
        long offset = u32(end + 16);
        if (count == IN_ZIP64_16 || size == IN_ZIP64_32 || offset == IN_ZIP64_32) {
            long end64 = findEnd64(end);
            count = u64(end64 + 32);
            size = u64(end64 + 40);
            offset = u64(end64 + 48);
        }
        if (offset > end || size > end - offset) {
            throw failure.apply("expected the zip's directory of " + size + " bytes at " + offset
                    + " to lie before its end record at " + end);
        }
        long at = offset;
        for (long i = 0; i < count; i++) {
            if (record(at, CENTRAL_BYTES, "zip directory") != CENTRAL) {
                throw failure.apply("expected " + count + " entries in the zip's directory, found " + i);
            }
            int nameBytes = u16(at + 28);
            int extraBytes = u16(at + 30);
            long name = at + CENTRAL_BYTES;
            record(name, (long) nameBytes + extraBytes, "zip directory");
            String text = new String(file.asSlice(name, nameBytes).toArray(ValueLayout.JAVA_BYTE), StandardCharsets.UTF_8);
            if (entries.put(text, entry(text, at, name + nameBytes, extraBytes)) != null) {
                throw failure.apply("expected each entry of the zip once, found " + text + " twice");
            }
            at = name + nameBytes + extraBytes + u16(at + 32);
        }
    }

    /** The entry whose directory record begins at {@code at}, with the values that zip64 keeps in the extra field. */
    private Entry entry(String name, long at, long extra, int extraBytes) {
        long[] wide = {u32(at + 24), u32(at + 20), u32(at + 42)};
        long field = extra;
        long extraEnd = extra + extraBytes;
        while (extraEnd - field >= 4) {
            long next = field + 4 + u16(field + 2);
            if (u16(field) == ZIP64_EXTRA) {
                long value = field + 4;
                for (int i = 0; i < wide.length; i++) {
                    if (wide[i] == IN_ZIP64_32 && value + 8 <= Math.min(next, extraEnd)) {
                        wide[i] = u64(value);
                        value += 8;
                    }
                }
            }
            field = next;
        }
        for (long value : wide) {
            if (value < 0) {
                throw failure.apply("entry " + name + ": expected sizes and offsets below 2^63, found "
                        + Long.toUnsignedString(value));
            }
        }
        return new Entry(u16(at + 8), u16(at + 10), wide[1], wide[0], wide[2]);
    }

    /** The end record: the last that its comment's length carries exactly to the end of the file. */
    private long findEnd() {
        long last = file.byteSize() - END_BYTES;
        for (long at = last; at >= Math.max(0, last - LONGEST_COMMENT); at--) {
            if (file.get(U32, at) == END && u16(at + 20) == last - at) {
                return at;
            }
        }
        throw failure.apply("expected the end record of a zip, found none: the file is truncated");
    }

    private long findEnd64(long end) {
        long locator = end - LOCATOR64_BYTES;
        if (locator < 0 || file.get(U32, locator) != LOCATOR64) {
            throw failure.apply("expected a zip64 locator before the zip's end record, found none");
        }
        long end64 = u64(locator + 8);
        if (record(end64, END64_BYTES, "zip64 end record") != END64) {
            throw failure.apply("expected a zip64 end record at byte " + end64 + ", found none");
        }
        for (int field = 32; field <= 48; field += 8) {
            if (u64(end64 + field) < 0) {
                throw failure.apply("expected sizes and offsets below 2^63 in the zip64 end record, found "
                        + Long.toUnsignedString(u64(end64 + field)));
            }
        }
        return end64;
    }

    /** Checks that {@code bytes} at {@code at} are in the file; the signature that stands there, or 0 when too short. */
    private int record(long at, long bytes, String what) {
        if (at < 0 || bytes > file.byteSize() || at > file.byteSize() - bytes) {
            throw failure.apply("expected a " + what + " at byte " + Long.toUnsignedString(at) + ", found a file of "
                    + file.byteSize() + " bytes");
        }
        return bytes < 4 ? 0 : file.get(U32, at);
    }

    private int u16(long at) {
        return Short.toUnsignedInt(file.get(U16, at));
    }

    private long u32(long at) {
        return Integer.toUnsignedLong(file.get(U32, at));
    }

    private long u64(long at) {
        return file.get(U64, at);
    }
}
