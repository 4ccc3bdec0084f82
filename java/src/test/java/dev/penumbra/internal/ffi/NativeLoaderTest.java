package dev.penumbra.internal.ffi;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.backend.NativeLibraryException;
import java.io.IOException;
import java.io.OutputStream;
import java.net.URI;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.jar.JarEntry;
import java.util.jar.JarOutputStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class NativeLoaderTest {

    private static final String BUILT = System.getProperty(NativeLibrary.PATH_PROPERTY);

    @TempDir
    Path folder;

    private NativeLoader loader(String version, String explicit, String libraryPath) {
        return new NativeLoader(version, explicit, getClass().getClassLoader(), sharedCache(), libraryPath);
    }

    /** The real cache: the needed libraries are 90 MB, and a second copy of one that is loaded would be another library. */
    private static Path sharedCache() {
        return NativeLibrary.cacheRoot(System.getenv(), System.getProperty("user.home"));
    }

    private static ClassLoader nothing() {
        return new ClassLoader(null) {
        };
    }

    @Test
    void loadsTheFileThatThePropertyNames() {
        assertThat(loader(NativeLibrary.version(), BUILT, "").load()).isEqualTo(Path.of(BUILT));
    }

    @Test
    void loadsFromTheSystemPathWhenNothingIsBundled() {
        NativeLoader loader = new NativeLoader(
                NativeLibrary.version(), null, withoutPenumbra(), sharedCache(), "/nowhere:" + Path.of(BUILT).getParent());
        assertThat(loader.load()).isEqualTo(Path.of(BUILT));
    }

    private ClassLoader withoutPenumbra() {
        ClassLoader tests = getClass().getClassLoader();
        return new ClassLoader(null) {
            @Override
            public URL getResource(String name) {
                return name.contains("libpenumbra") ? null : tests.getResource(name);
            }
        };
    }

    @Test
    void namesBothVersionsWhenTheyDiffer() {
        assertThatThrownBy(() -> loader("9.9.9", BUILT, "").load())
                .isInstanceOf(NativeLibraryException.class)
                .hasMessageContaining("expected version 9.9.9")
                .hasMessageContaining("found " + NativeLibrary.version())
                .hasMessageContaining(BUILT);
    }

    @Test
    void namesTheMissingFile() {
        Path missing = folder.resolve("libpenumbra.so");
        assertThatThrownBy(() -> loader("0.1.0", missing.toString(), "").load())
                .isInstanceOf(NativeLibraryException.class)
                .hasMessageContaining(missing.toString())
                .hasMessageContaining("no such file");
    }

    @Test
    void namesTheFileThatIsNoLibrary() throws IOException {
        Path text = Files.writeString(folder.resolve("libpenumbra.so"), "not a library");
        assertThatThrownBy(() -> loader("0.1.0", text.toString(), "").load())
                .isInstanceOf(NativeLibraryException.class)
                .hasMessageContaining(text.toString());
    }

    @Test
    void saysAllThatWasTried() {
        assertThatThrownBy(() -> new NativeLoader("0.1.0", null, nothing(), folder, folder.toString()).load())
                .isInstanceOf(NativeLibraryException.class)
                .hasMessageContaining("libdnnl.so.3")
                .hasMessageContaining("dev/penumbra/native/linux-x86_64/libpenumbra.so")
                .hasMessageContaining(folder.toString());
    }

    @Test
    void saysWhyTheCacheCannotBeWritten() throws Exception {
        Path file = Files.writeString(folder.resolve("a-file"), "");
        try (URLClassLoader jar = jar("x")) {
            assertThatThrownBy(() -> new NativeLoader("0.1.0", null, jar, file.resolve("cache"), "").load())
                    .isInstanceOf(NativeLibraryException.class)
                    .hasMessageContaining("cannot be copied to " + file)
                    .hasMessageContaining("XDG_CACHE_HOME");
        }
    }

    @Test
    void processesThatStartTogetherShareOneWholeCopy() throws Exception {
        String content = "0123456789".repeat(100_000);
        try (URLClassLoader jar = jar(content);
                ExecutorService threads = Executors.newFixedThreadPool(8)) {
            List<Callable<Path>> starts = new ArrayList<>();
            for (int i = 0; i < 8; i++) {
                starts.add(() -> new NativeCache(folder.resolve("cache"), "0.1.0").file(jar.getResource(RESOURCE)));
            }
            Path first = null;
            for (Future<Path> start : threads.invokeAll(starts)) {
                first = start.get();
                assertThat(first).hasFileName("libpenumbra.so").hasContent(content);
            }
            try (Stream<Path> files = Files.list(first.getParent())) {
                assertThat(files).containsExactly(first);
            }
        }
    }

    @Test
    void replacesACopyThatWasCutShort() throws Exception {
        try (URLClassLoader jar = jar("whole")) {
            NativeCache cache = new NativeCache(folder.resolve("cache"), "0.1.0");
            Path file = cache.file(jar.getResource(RESOURCE));
            Files.writeString(file, "who");
            assertThat(cache.file(jar.getResource(RESOURCE))).isEqualTo(file).hasContent("whole");
        }
    }

    @Test
    void otherContentsAndOtherVersionsHaveOtherFolders() throws Exception {
        Path cache = folder.resolve("cache");
        try (URLClassLoader one = jar("one");
                URLClassLoader two = jar("two")) {
            Path a = new NativeCache(cache, "0.1.0").file(one.getResource(RESOURCE));
            Path b = new NativeCache(cache, "0.1.0").file(two.getResource(RESOURCE));
            Path c = new NativeCache(cache, "0.2.0").file(one.getResource(RESOURCE));
            assertThat(List.of(a.getParent(), b.getParent(), c.getParent())).doesNotHaveDuplicates();
            assertThat(a).hasContent("one");
            assertThat(b).hasContent("two");
        }
    }

    @Test
    void cachesWhereTheUserWantsIt() {
        assertThat(NativeLibrary.cacheRoot(Map.of("XDG_CACHE_HOME", "/big"), "/home/x")).isEqualTo(Path.of("/big/penumbra"));
        assertThat(NativeLibrary.cacheRoot(Map.of(), "/home/x")).isEqualTo(Path.of("/home/x/.cache/penumbra"));
        assertThat(NativeLibrary.cacheRoot(Map.of("XDG_CACHE_HOME", "relative"), "/home/x"))
                .isEqualTo(Path.of("/home/x/.cache/penumbra"));
    }

    private static final String RESOURCE = "dev/penumbra/native/linux-x86_64/libpenumbra.so";

    private int jars;

    private URLClassLoader jar(String content) throws IOException {
        Path file = folder.resolve("natives-" + jars++ + ".jar");
        try (OutputStream out = Files.newOutputStream(file);
                JarOutputStream jar = new JarOutputStream(out)) {
            jar.putNextEntry(new JarEntry(RESOURCE));
            jar.write(content.getBytes(StandardCharsets.UTF_8));
        }
        URI uri = file.toUri();
        return new URLClassLoader(new URL[]{uri.toURL()}, null);
    }
}
