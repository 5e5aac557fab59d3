import java.io.File;
import org.codehaus.commons.compiler.util.resource.FileResource;
import org.codehaus.commons.compiler.util.resource.Resource;
import org.codehaus.janino.ClassLoaderIClassLoader;
import org.codehaus.janino.Compiler;

/** Compiles the source file args[0] into the folder args[1] with the compiler in Flink's jars. */
public class Build {
    public static void main(String[] args) throws Exception {
        Compiler compiler = new Compiler();
        compiler.setIClassLoader(new ClassLoaderIClassLoader(ClassLoader.getSystemClassLoader()));
        compiler.setDestinationDirectory(new File(args[1]), false);
        Resource[] sources = {new FileResource(new File(args[0]))};
        compiler.compile(sources);
    }
}
