-- wrk: GET PREFIX/ID, every id once, each connection pausing PAUSE ms between them. wrk ... -- PREFIX FIRST PAUSE [HEADER]...
local threads = 0
function setup(thread)
   thread:set("number", threads)
   threads = threads + 1
end
function init(args)
   prefix = args[1]
   next_id = tonumber(args[2]) + number * 1000000
   pause = tonumber(args[3])
   headers = {}
   for i = 4, #args do
      local name, value = string.match(args[i], "([^:]+): ?(.*)")
      headers[name] = value
   end
end
function request()
   next_id = next_id + 1
   return wrk.format("GET", string.format("%s%d", prefix, next_id), headers)
end
function delay()
   return pause
end
function done(summary, latency)
   io.write(string.format('{"requests":%d,"non2xx":%d,"socket":%d,"timeouts":%d,"p50_us":%d,"p99_us":%d}\n', summary.requests,
      summary.errors.status, summary.errors.connect + summary.errors.read + summary.errors.write, summary.errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
