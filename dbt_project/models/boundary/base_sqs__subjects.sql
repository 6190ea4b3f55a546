-- Whose each message is, and the message, for the function that erases a person.
{{ config(grants={'select': ['pipeline_owner']}) }}

select
    messages.message_id,
    messages.body,
    logins.reason is null as is_accepted,
    logins.user_id as subject
from {{ source('raw', 'sqs_messages') }} as messages
inner join {{ ref('base_sqs__logins') }} as logins on messages.message_id = logins.message_id
