package dev.penumbra.io;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.zip.CRC32;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;

/** Writes small zips in the form of those beyond 4 GiB: every size and offset in a zip64 record. */
final class Zip64 {

    private Zip64() {
    }

    /** Copies the entries of a zip, stored. */
    static void rewrite(Path from, Path to) throws IOException {
        try (ZipFile zip = new ZipFile(from.toFile())) {
            List<? extends ZipEntry> entries = zip.stream().toList();
            ByteBuffer out = ByteBuffer.allocate(1 << 20).order(ByteOrder.LITTLE_ENDIAN);
            ByteBuffer directory = ByteBuffer.allocate(1 << 20).order(ByteOrder.LITTLE_ENDIAN);
            for (ZipEntry entry : entries) {
                byte[] name = entry.getName().getBytes(StandardCharsets.UTF_8);
                byte[] bytes = zip.getInputStream(entry).readAllBytes();
                CRC32 crc = new CRC32();
                crc.update(bytes);
                long offset = out.position();
                out.putInt(0x04034b50);
                shared(out, crc, name.length, 20);
                out.put(name).putShort((short) 1).putShort((short) 16).putLong(bytes.length).putLong(bytes.length);
                out.put(bytes);
                directory.putInt(0x02014b50).putShort((short) 45);
                shared(directory, crc, name.length, 28);
                directory.putShort((short) 0).putShort((short) 0).putShort((short) 0).putInt(0).putInt(-1);
                directory.put(name).putShort((short) 1).putShort((short) 24);
                directory.putLong(bytes.length).putLong(bytes.length).putLong(offset);
            }
            long begin = out.position();
            out.put(directory.flip());
            long end = out.position();
            out.putInt(0x06064b50).putLong(44).putShort((short) 45).putShort((short) 45).putInt(0).putInt(0);
            out.putLong(entries.size()).putLong(entries.size()).putLong(end - begin).putLong(begin);
            out.putInt(0x07064b50).putInt(0).putLong(end).putInt(1);
            out.putInt(0x06054b50).putShort((short) 0).putShort((short) 0).putShort((short) -1).putShort((short) -1);
            out.putInt(-1).putInt(-1).putShort((short) 0);
            byte[] whole = new byte[out.position()];
            out.flip().get(whole);
            Files.write(to, whole);
        }
    }

    /** What a local header and a directory record have in common: from the version needed to the extra field's length. */
    private static void shared(ByteBuffer out, CRC32 crc, int nameBytes, int extraBytes) {
        out.putShort((short) 45).putShort((short) 0).putShort((short) 0).putInt(0).putInt((int) crc.getValue());
        out.putInt(-1).putInt(-1).putShort((short) nameBytes).putShort((short) extraBytes);
    }
}
