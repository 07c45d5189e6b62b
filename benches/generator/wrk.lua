-- Makes wrk measure a server that upper-cases: what it sends is not a request but a complete HTTP
-- response in capitals, which comes back unchanged and is then what wrk waits for.
-- wrk -s wrk.lua URL -- BYTES

local message, asked

function init(args)
   local bytes = tonumber(args[1])
   local head
   -- The length of the body stands in the head, and the length of that number counts as well.
   for digits = 1, 8 do
      local rest = bytes - #"HTTP/1.1 200 OK\r\nCONTENT-LENGTH: \r\n\r\n" - digits
      if #tostring(rest) == digits then
         head = "HTTP/1.1 200 OK\r\nCONTENT-LENGTH: " .. rest .. "\r\n\r\n"
         break
      end
   end
   message = head .. string.rep("x", bytes - #head)
end

function request()
   -- The first one is never sent: wrk only looks whether it is a valid request.
   if asked then return message end
   asked = true
   return wrk.format("GET", "/")
end
