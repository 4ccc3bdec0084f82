package dev.penumbra.internal.ffi;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.File;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import org.junit.jupiter.api.Test;

class BindingsCurrentTest {

    @Test
    void committedBindingsAreWhatTheHeadersGive() throws Exception {
        assumeTrue(jextractIsThere(), "jextract is neither in JEXTRACT_HOME nor on the PATH: the bindings are not checked");
        Process check = new ProcessBuilder("bindings/generate.sh", "--check").redirectErrorStream(true).start();
        String output = new String(check.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        assertThat(check.waitFor()).as(output).isZero();
    }

    private static boolean jextractIsThere() {
        String home = System.getenv().getOrDefault("JEXTRACT_HOME", "");
        String path = System.getenv().getOrDefault("PATH", "");
        String folders = home.isEmpty() ? path : home + "/bin" + File.pathSeparator + home + File.pathSeparator + path;
        return Arrays.stream(folders.split(File.pathSeparator)).anyMatch(f -> Files.isExecutable(Path.of(f, "jextract")));
    }
}
