package restguard;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.runtime.io.network.netty.InboundChannelHandlerFactory;
import org.apache.flink.shaded.netty4.io.netty.buffer.Unpooled;
import org.apache.flink.shaded.netty4.io.netty.channel.Channel;
import org.apache.flink.shaded.netty4.io.netty.channel.ChannelFuture;
import org.apache.flink.shaded.netty4.io.netty.channel.ChannelFutureListener;
import org.apache.flink.shaded.netty4.io.netty.channel.ChannelHandlerContext;
import org.apache.flink.shaded.netty4.io.netty.channel.ChannelInboundHandlerAdapter;
import org.apache.flink.shaded.netty4.io.netty.channel.ChannelInitializer;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.DefaultFullHttpResponse;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.FullHttpResponse;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.HttpHeaders;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.HttpRequest;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.HttpResponseStatus;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.HttpServerCodec;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.HttpVersion;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.LastHttpContent;
import org.apache.flink.shaded.netty4.io.netty.handler.codec.http.QueryStringDecoder;
import org.apache.flink.shaded.netty4.io.netty.util.ReferenceCountUtil;

/**
 * A guard inside Flink's REST server that refuses what another site's page makes a browser send.
 *
 * <p>Flink loads it as a service. Janino compiles it, so it has raw types and no lambdas.
 */
public class RestGuard implements InboundChannelHandlerFactory {

    public int priority() {
        return 0;
    }

    public Optional createHandler(Configuration configuration, Map responseHeaders) {
        String[] names = {"127.0.0.1", "localhost", "[::1]"};
        Set hosts = new HashSet(Arrays.asList(names));
        String own = configuration.getString("rest.address", "localhost");
        hosts.add(own.toLowerCase(Locale.ROOT));
        return Optional.of(new Placing(hosts));
    }

    /**
     * Puts the guard right behind the HTTP codec. Flink would put it behind the handler that writes
     * uploads to disk.
     */
    static class Placing extends ChannelInitializer {
        private final Set hosts;

        Placing(Set hosts) {
            this.hosts = hosts;
        }

        protected void initChannel(Channel channel) {
            String codec = channel.pipeline().context(HttpServerCodec.class).name();
            channel.pipeline().addAfter(codec, "rest-guard", new Guard(hosts));
        }
    }

    /** Answers 403 to a refused request and closes the connection once its body has been read. */
    static class Guard extends ChannelInboundHandlerAdapter {
        private final Set hosts;
        private ChannelFuture refusal;

        Guard(Set hosts) {
            this.hosts = hosts;
        }

        public void channelRead(ChannelHandlerContext context, Object message) throws Exception {
            if (refusal == null && message instanceof HttpRequest) {
                String reason = reasonToRefuse((HttpRequest) message);
                if (reason != null) {
                    refusal = context.writeAndFlush(forbidden(reason));
                }
            }
            if (refusal == null) {
                super.channelRead(context, message);
                return;
            }
            ReferenceCountUtil.release(message);
            if (message instanceof LastHttpContent) {
                refusal.addListener(ChannelFutureListener.CLOSE);
            }
        }

        private String reasonToRefuse(HttpRequest request) {
            HttpHeaders headers = request.headers();
            List named = headers.getAll("Host");
            String host = named.size() == 1 ? lower(named.get(0)) : "";
            // A foreign name that resolves to this machine is DNS rebinding.
            if (!hosts.contains(host.replaceFirst(":\\d+$", ""))) {
                return "Flink answers here only to the names of this machine.";
            }
            List origins = headers.getAll("Origin");
            for (int i = 0; i < origins.size(); i++) {
                if (!lower(origins.get(i)).equals("http://" + host)) {
                    return "Flink takes requests from its own page only, not from another origin.";
                }
            }
            String path = new QueryStringDecoder(request.uri()).path();
            String site = headers.get("Sec-Fetch-Site", "none");
            boolean own = site.equals("none") || site.equals("same-origin");
            if (!own && !opensThePage(request, path)) {
                return "Flink takes requests from its own page only, not from another site.";
            }
            // Made for YARN's proxy, which passes GET only; a link must never cancel a job.
            if (path.contains("/yarn-cancel") || path.contains("/yarn-stop")) {
                return "A GET request changes nothing here.";
            }
            return null;
        }

        private static boolean opensThePage(HttpRequest request, String path) {
            return request.method().name().equals("GET")
                    && "navigate".equals(request.headers().get("Sec-Fetch-Mode"))
                    && "document".equals(request.headers().get("Sec-Fetch-Dest"))
                    && (path.equals("/") || path.equals("/index.html"));
        }

        private static String lower(Object text) {
            return ((String) text).toLowerCase(Locale.ROOT);
        }

        private static FullHttpResponse forbidden(String reason) {
            byte[] body = ("{\"errors\":[\"" + reason + "\"]}").getBytes(StandardCharsets.UTF_8);
            FullHttpResponse answer =
                    new DefaultFullHttpResponse(
                            HttpVersion.HTTP_1_1,
                            HttpResponseStatus.FORBIDDEN,
                            Unpooled.wrappedBuffer(body));
            answer.headers().set("Content-Type", "application/json; charset=UTF-8");
            answer.headers().set("Content-Length", Integer.valueOf(body.length));
            answer.headers().set("Connection", "close");
            return answer;
        }
    }
}
