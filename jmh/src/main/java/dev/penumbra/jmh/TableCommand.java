package dev.penumbra.jmh;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** Prints the README's table of what was measured. */
@Command(name = "table", description = "Print the README's table, from jmh/results.", mixinStandardHelpOptions = true)
final class TableCommand implements Callable<Integer> {

    @Option(names = "--write", description = "Put it into README.md.")
    private boolean write;

    @Override
    public Integer call() throws Exception {
        String table = ReadmeTable.of(Results.readAll());
        System.out.print(table);
        if (write) {
            Path readme = Results.module().resolve("../README.md");
            Files.writeString(readme, ReadmeTable.replaceIn(Files.readString(readme), table));
        }
        return 0;
    }
}
